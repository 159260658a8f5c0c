import ipywidgets as w
import pytest
import torch
from matplotlib.figure import Figure

from helpers import classifiers, data, diagrams, widgets

CLASSES = ["ant", "bee", "cat", "dog", "elk"]


def _find(widget, kind, description):
    if isinstance(widget, kind) and getattr(widget, "description", "") == description:
        return widget
    found = (_find(child, kind, description) for child in getattr(widget, "children", ()))
    return next((f for f in found if f is not None), None)


@pytest.fixture
def explorer(denoiser):
    guided = {"guidance": 3.0, "interval": (0.0, 100.0)}
    return widgets.walk_explorer(denoiser, CLASSES, start=("cat", "ant"), frames=3, steps=2, **guided)


def test_walk_explorer_moves_between_classes_and_seeds(explorer):
    picture = _find(explorer, w.Image, "")
    position = _find(explorer, w.SelectionSlider, "position")
    first = bytes(picture.value)
    assert first.startswith(b"\x89PNG")
    assert _find(explorer, w.Label, "").value == "100% cat, 0% ant"
    assert not _find(explorer, w.FloatSlider, "guidance").continuous_update  # not a drawing for each pixel of a drag
    position.value = 1.0
    assert _find(explorer, w.Label, "").value == "0% cat, 100% ant"
    last = picture.value
    assert last != first
    _find(explorer, w.Dropdown, "to").value = CLASSES.index("dog")
    assert picture.value != last
    position.value = 0.0
    assert picture.value == first  # the other end does not depend on it, and the frame is the same
    _find(explorer, w.FloatSlider, "guidance").value = 1.0
    assert picture.value != first
    _find(explorer, w.FloatSlider, "guidance").value = 3.0
    seed_a, seed_b = (_find(row, w.BoundedIntText, "seed") for row in explorer.children[:2])
    seed_b.value = 9
    assert picture.value == first  # of the other end
    seed_a.value = 9
    assert picture.value != first
    position.value = 1.0
    nine = picture.value
    seed_a.value = 4
    assert picture.value == nine
    seed_b.value = 4
    assert picture.value != nine


def test_walk_explorer_guides_in_its_interval(denoiser):
    options = {"start": ("cat", "ant"), "guidance": 3.0, "frames": 3, "steps": 2}
    everywhere, nowhere, unguided = (
        bytes(_find(widgets.walk_explorer(denoiser, CLASSES, **options | how), w.Image, "").value)
        for how in ({"interval": (0.0, 100.0)}, {"interval": (99.0, 100.0)}, {"interval": (0, 100), "guidance": 1.0})
    )
    assert everywhere != nowhere == unguided


def test_play_drives_the_position(explorer):
    play = _find(explorer, w.Play, "play")
    play.value = 1
    assert _find(explorer, w.SelectionSlider, "position").value == 0.5


def test_sample_explorer_draws_what_is_chosen(denoiser, monkeypatch):
    drawn = []
    real = widgets.sample
    monkeypatch.setattr(widgets, "sample", lambda *a, **k: drawn.append((a[1].tolist(), k)) or real(*a, **k))
    chooser = widgets.sample_explorer(denoiser, CLASSES, start="cat", guidance=2.0, interval=(0.3, 3.0), count=2)
    picture = _find(chooser, w.Image, "")
    seen = [bytes(picture.value)]
    for kind, name, value in [(w.Dropdown, "class", 3), (w.BoundedIntText, "seed", 7),
                              (w.FloatSlider, "guidance", 4.0), (w.IntSlider, "steps", 3)]:  # fmt: skip
        _find(chooser, kind, name).value = value
        seen.append(bytes(picture.value))
    assert len(set(seen)) == 5
    labels, options = drawn[-1]
    assert labels == [3, 3]
    assert (options["seed"], options["guidance"], options["interval"]) == (7, 4.0, (0.3, 3.0))
    assert len(options["sigmas"]) == 4
    _find(chooser, w.IntSlider, "steps").value = 10
    assert len(drawn) == 5  # kept from before
    assert picture.value == seen[3]


def test_digit_explorer_shows_the_digits_that_were_chosen(monkeypatch):
    drawn = []
    monkeypatch.setattr(diagrams, "digit_sum", lambda net, image, digits: drawn.append((image, digits)) or Figure())
    images, labels = data.digits("", "test", "demo")
    explorer = widgets.digit_explorer(classifiers.DigitSumClassifier().eval(), images, labels)
    assert [digits for _, digits in drawn] == [(3, 5, 8)]
    _find(explorer, w.Dropdown, "green").value = 7
    (before, _), (image, digits) = drawn
    assert digits == (3, 7, 8)
    assert torch.equal(before[[0, 2]], image[[0, 2]])  # the other two as they were
    names = {picture.numpy().tobytes(): int(label) for picture, label in zip(images, labels, strict=True)}
    assert tuple(names[channel.numpy().tobytes()] for channel in image) == digits

    _find(explorer, w.BoundedIntText, "handwriting").value = 9
    assert drawn[-1][1] == digits
    assert not torch.equal(drawn[-1][0], image)
    _find(explorer, w.BoundedIntText, "handwriting").value = 0
    assert len(drawn) == 3  # kept from before
    _find(explorer, w.Button, "shuffle").click()
    assert len(drawn) == 4  # once, not once for each digit
    assert drawn[-1][1] == tuple(_find(explorer, w.Dropdown, name).value for name in ("red", "green", "blue"))
    assert drawn[-1][1] != digits
    assert _find(explorer, w.Label, "").value == f"{' + '.join(map(str, drawn[-1][1]))}, handwriting 1"


def test_an_explorer_that_cannot_draw_at_all_stops_its_cell(denoiser):
    with pytest.raises(ValueError, match="interval must be"):
        widgets.sample_explorer(denoiser, CLASSES, start="cat", guidance=2.0, interval=(3.0, 0.3))


def test_an_error_is_shown_where_the_picture_would_be_and_the_next_choice_tries_again(denoiser, monkeypatch):
    explorers = [
        widgets.sample_explorer(denoiser, CLASSES, start="cat", guidance=2.0, interval=(0.3, 3.0), count=2),
        widgets.walk_explorer(denoiser, CLASSES, start=("cat", "dog"), guidance=2.0, interval=(0.3, 3.0), frames=3),
    ]

    def fail(*_, **__):
        raise RuntimeError("CUDA error: out of patience")

    for explorer in explorers:
        picture, line, seed = (_find(explorer, kind, name) for kind, name in
                               ((w.Image, ""), (w.Label, ""), (w.BoundedIntText, "seed")))  # fmt: skip
        said = line.value
        with monkeypatch.context() as patch:
            patch.setattr(widgets, "sample", fail)
            patch.setattr(widgets, "between", fail)
            seed.value = 5
            assert line.value == "RuntimeError: CUDA error: out of patience"
            assert picture.value == b""
        seed.value = 6
        assert bytes(picture.value).startswith(b"\x89PNG")
        assert line.value == said


def test_sliders_hold_what_the_settings_allow_and_unknown_classes_are_named(denoiser):
    for guidance in (0.0, 9.0):
        explorer = widgets.sample_explorer(
            denoiser, CLASSES, start="bee", guidance=guidance, interval=(0.0, 9.0), count=1
        )
        assert _find(explorer, w.FloatSlider, "guidance").value == guidance
    with pytest.raises(ValueError, match="'fox' is not among the 5 classes"):
        widgets.sample_explorer(denoiser, CLASSES, start="fox", guidance=1.0, interval=(0.0, 9.0))


def test_digit_explorer_draws():
    images, labels = data.digits("", "test", "demo")
    net = classifiers.DigitSumClassifier()
    explorer = widgets.digit_explorer(net, images, labels)
    assert net.training  # looking changes neither its mode
    assert torch.equal(net.reader[1].running_mean, torch.zeros(24))  # nor its batch norms
    picture = _find(explorer, w.Image, "")
    first = bytes(picture.value)
    assert first.startswith(b"\x89PNG")
    _find(explorer, w.Button, "shuffle").click()
    assert picture.value != first


def test_a_walk_of_one_frame_is_refused(denoiser):
    with pytest.raises(ValueError, match="two frames or more, got 1"):
        widgets.walk_explorer(denoiser, CLASSES, start=("ant", "bee"), guidance=1.0, interval=(0.0, 9.0), frames=1)


def test_the_same_digit_in_three_channels_is_three_handwritings(monkeypatch):
    images = torch.arange(200, dtype=torch.uint8)[:, None, None].expand(200, 28, 28).contiguous()
    seen, draw = [], diagrams.digit_sum
    monkeypatch.setattr(
        diagrams,
        "digit_sum",
        lambda net, image, digits: seen.append(image[:, 0, 0].tolist()) or draw(net, image, digits),
    )
    explorer = widgets.digit_explorer(classifiers.DigitSumClassifier(), images, torch.arange(200) % 10)
    explorer.choose(red=4, green=4, blue=4)
    assert [pixel % 10 for pixel in seen[-1]] == [4, 4, 4]
    assert len(set(seen[-1])) > 1
