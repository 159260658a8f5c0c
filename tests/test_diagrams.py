import re

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle
from torch import nn

from helpers import batches, data, diagrams, results, unet
from helpers.budget import count_parameters
from helpers.classifiers import DigitSumClassifier, PaperClassifier


def _texts(figure):
    found = [text.get_text() for axis in figure.axes for text in axis.texts]
    return found + [axis.get_title(loc=loc) for axis in figure.axes for loc in ("left", "center")]


def test_digit_sum_shows_the_nets_own_distributions():
    torch.manual_seed(0)
    net = DigitSumClassifier().eval()
    image = torch.randint(0, 256, (3, 28, 28), dtype=torch.uint8)
    figure = diagrams.digit_sum(net, image, (3, 4, 5))
    read = net.digit_log_probabilities(batches.normalise(image[None]))[0].exp().detach()
    axes = {axis.get_label(): axis for axis in figure.axes}
    np.testing.assert_array_equal(axes["image"].images[0].get_array(), image.permute(1, 2, 0).numpy())
    answer = int(net(batches.normalise(image[None]))[0].argmax()) + 1
    assert f"read {answer} (" in axes["sum"].get_title(loc="left")
    named = zip(("red", "green", "blue"), (3, 4, 5), read.argmax(dim=1).tolist(), strict=True)
    assert ", ".join(f"{name} {digit}, read {found}" for name, digit, found in named) in figure.alt
    for channel in range(3):
        np.testing.assert_array_equal(axes[str(channel)].images[0].get_array(), image[channel].numpy())
        heights = [bar.get_height() for bar in axes[f"r{channel}"].patches]
        np.testing.assert_allclose(heights, read[channel], rtol=1e-5)
        true = [bar.get_facecolor() == pytest.approx(to_rgba(diagrams.ORANGE)) for bar in axes[f"r{channel}"].patches]
        assert true.index(True) == (3, 4, 5)[channel]  # whatever was read
        assert sum(true) == 1
    heights = [bar.get_height() for bar in axes["sum"].patches]
    np.testing.assert_allclose(heights, net(batches.normalise(image[None]))[0].exp().detach(), rtol=1e-5)
    orange = [round(bar.get_x() + bar.get_width() / 2) for bar in axes["sum"].patches
              if bar.get_facecolor() == pytest.approx(to_rgba(diagrams.ORANGE))]  # fmt: skip
    assert orange == [12]
    for name, values in {"r0": range(10), "r1": range(10), "r2": range(10), "sum": range(1, 21, 3)}.items():
        assert [axes[name].get_xticks().tolist()] == [[*values]]  # a bar stands above its own value
        assert [label.get_text() for label in axes[name].get_xticklabels()] == [str(value) for value in values]
    assert axes["sum"].get_title(loc="left").startswith("3 + 4 + 5 = 12")
    none = diagrams.digit_sum(net, image, (9, 9, 9))
    assert "no label for 27" in {axis.get_label(): axis for axis in none.axes}["sum"].get_xlabel()


def test_diagrams_say_what_the_nets_are():
    net = PaperClassifier().eval()
    texts = " ".join(_texts(diagrams.layer_diagram(net, torch.zeros(1, 3, 28, 28))))
    assert f"PaperClassifier: output shapes and parameters, {count_parameters(net):,} in all" in texts
    assert texts.count("conv 3×3") == 4
    assert texts.count("max pool") == 3
    assert "64×3×3" in texts
    axis = diagrams.layer_diagram(net, torch.zeros(1, 3, 28, 28)).axes[0]
    lefts = [box.get_x() for box in axis.patches if isinstance(box, Rectangle)]
    assert lefts[0] == 0
    assert axis.get_xlim()[0] < lefts[0] < lefts[-1] + 0.5 < axis.get_xlim()[1]  # all within the picture
    assert not any(module._forward_hooks for module in net.modules())


def test_a_net_of_ones_own_is_drawn_as_it_is():
    class Conv(nn.Conv2d):
        pass

    shared = nn.Linear(8, 8)
    net = nn.Sequential(nn.BatchNorm2d(3), Conv(3, 8, 5, padding=2), nn.GroupNorm(2, 8), nn.AdaptiveAvgPool2d(1),
                        nn.Flatten(), shared, nn.ReLU(), shared)  # fmt: skip
    texts = " ".join(_texts(diagrams.layer_diagram(net, torch.zeros(1, 3, 28, 28))))
    assert "conv 5×5" in texts
    assert "batch norm" in texts
    assert f"{count_parameters(net):,} in all" in texts  # what is not drawn and what is used twice included


def test_the_net_that_adds_is_drawn_with_one_reader_and_all_its_parameters():
    net = DigitSumClassifier()
    texts = _texts(diagrams.adder_diagram(net))
    under = [text.split("\n")[1] for text in texts if re.fullmatch(r"[\d×]+\n[\d,]+", text)]
    assert sum(int(count.replace(",", "")) for count in under) == count_parameters(net)
    assert any(f"{count_parameters(net):,} in all" in text and "DigitSumClassifier" in text for text in texts)
    assert {"red", "green", "blue", "exact sum", "one reader, used three times"} <= set(texts)
    assert {"mean pool", "linear"} <= set(texts)
    assert [text for text in texts if text.startswith("conv")] == ["conv 3×3", "conv 3×3, stride 2", *["conv 3×3"] * 3]
    boxes = diagrams.adder_diagram(net).axes[0].patches
    blue = to_rgba(diagrams.COLOURS["conv"])
    assert sum(box.get_facecolor() == blue for box in boxes) == 5  # a stride does not take its colour


@pytest.mark.parametrize("net", [unet.UNet((8, 16), (1, 2), loops=(1, 3)), unet.plain()])
def test_the_diagram_of_a_unet_adds_up_and_says_how_often_a_block_is_used(net):
    texts = _texts(diagrams.unet_diagram(net))
    for width, blocks in {level[0].conv_out.out_channels: len(level) for level in [*net.down, *net.up]}.items():
        assert texts.count(f"block {width}") == blocks * (1 if width == net.down[-1][0].conv_out.out_channels else 2)
    assert texts.count("3 times") == (1 if net.loops[-1] == 3 else 0)
    assert f"{count_parameters(net):,} parameters" in texts
    assert "noise level and class:\nscale and shift" in texts
    assert f"{count_parameters(net.norm) + count_parameters(net.head):,}" in texts
    assert count_parameters(net) == sum(int(text.replace(",", "")) for text in texts if re.fullmatch(r"[\d,]+", text))


def test_from_noise_to_image_shows_what_each_step_began_with_and_what_it_took_that_for(monkeypatch):
    grids = []
    monkeypatch.setattr(
        diagrams, "image_grid", lambda images, columns, **titles: grids.append((images, columns, titles))
    )
    sigmas = torch.tensor([3.0, 1.0, 0.5, 0.0])
    start = torch.full((2, 3, 4, 4), 3.0)
    way = [
        (torch.full_like(start, x), torch.full_like(start, estimate)) for x, estimate in ((1, 0), (0.5, 0.2), (0, 1))
    ]
    diagrams.from_noise_to_image(start, way, sigmas, ["fox", "bowl"], stages=2)  # the first and the last step
    images, columns, titles = grids[0]
    noisy, estimates = [3.0 / 10**0.5, 0.5 / 1.25**0.5], [0.0, 1.0]  # at unit variance
    assert images.shape == (8, 3, 4, 4)
    assert torch.equal(images[:, 0, 0, 0], batches.to_uint8(torch.tensor(2 * (noisy + estimates))))
    assert columns == 2
    assert titles == {"row_titles": ["fox", "estimate", "bowl", "estimate"], "column_titles": ["σ = 3", "σ = 0.5"]}
    diagrams.from_noise_to_image(start, way, sigmas, ["fox", "bowl"])
    assert grids[1][1] == 3  # fewer steps than stages: all of them
    diagrams.from_noise_to_image(start, 4 * way, torch.cat([sigmas[:-1]] * 4 + [sigmas[-1:]]), ["fox", "bowl"])
    assert grids[2][1] == 10


@pytest.mark.parametrize("net", [unet.UNet(), unet.plain(), unet.UNet((16, 16, 32), (1, 2, 1), loops=(2, 1, 2))])
def test_the_way_through_each_level_of_the_u_runs_through_its_own_boxes(net):
    boxes, spans = diagrams._boxes_of_the_u(net)
    assert [level for level, *_ in spans] == [0, 1, 2, 1, 0]
    for level, entrance, first, last in spans:
        assert {boxes[i][0] for i in range(entrance, last + 1)} == {level}
        looped = [boxes[i][1].split()[0] for i in range(first, last + 1)]
        assert looped == ["block"] * len(net.down[level]) + ["attention"] * (level == 2)
        assert [boxes[i][1] for i in range(entrance, first)] in ([], ["1×1"])
    assert sum(last - entrance + 1 for _, entrance, _, last in spans) == len(boxes) - 2  # but the stem and the head


def test_what_is_said_of_a_sum_is_what_was_read_in_each_channel():
    net, (images, labels) = DigitSumClassifier(), data.digits("", "test")
    results.load_weights("classifier_best", net)
    image = images[[int((labels == digit).nonzero()[0]) for digit in (3, 4, 5)]]
    read = net.digit_log_probabilities(batches.normalise(image[None]))[0].argmax(dim=1).tolist()
    assert len(set(read)) == 3
    figure = diagrams.digit_sum(net, image, (3, 4, 5))
    said = [
        f"{name} {digit}, read {found}"
        for name, digit, found in zip(diagrams.COLOUR_NAMES, (3, 4, 5), read, strict=True)
    ]
    assert ", ".join(said) in figure.alt


def test_a_picture_leaves_the_net_in_the_mode_and_with_the_statistics_that_it_had():
    net, image = DigitSumClassifier().train(), torch.randint(0, 256, (3, 28, 28), dtype=torch.uint8)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    diagrams.digit_sum(net, image, (3, 4, 5))
    diagrams.adder_diagram(net)
    diagrams.layer_diagram(net.reader, torch.zeros(1, 1, 28, 28))
    assert all(part.training for part in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(part._forward_hooks for part in net.modules())


@pytest.mark.parametrize("net", [unet.UNet(), unet.plain(), unet.UNet((16, 16, 32), (1, 2, 1), loops=(2, 1, 2))])
def test_everything_of_the_u_lies_inside_the_picture_and_where_it_belongs(net):
    figure = diagrams.unet_diagram(net)
    axis = figure.axes[0]
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    for x, y in (text.get_position() for text in axis.texts):
        assert left <= x <= right
        assert bottom <= y <= top
    texts = {text.get_text(): text.get_position() for text in axis.texts}
    assert "1 times" not in texts
    assert {"32×32", "16×16", "8×8"} <= texts.keys()
    boxes, spans = diagrams._boxes_of_the_u(net)
    centres = [patch.get_x() + patch.get_width() / 2 for patch in axis.patches if hasattr(patch, "get_width")]
    for level, _, first, last in spans:
        if net.loops[level] > 1:
            middle = (centres[first] + centres[last]) / 2
            said = [text.get_position()[0] for text in axis.texts if text.get_text() == f"{net.loops[level]} times"]
            assert any(x == pytest.approx(middle) for x in said)
    entrances = {
        part.weight.numel() + part.bias.numel() for part in (*net.enter_down, *net.enter_up) if count_parameters(part)
    }
    assert {parameters for _, name, parameters in boxes if name == "1×1"} == entrances
    shown = [int(text.replace(",", "")) for text in texts if re.fullmatch(r"[\d,]+", text)]
    assert set(shown) >= {parameters for *_, parameters in boxes}
    every = sum(int(t.get_text().replace(",", "")) for t in axis.texts if re.fullmatch(r"[\d,]+", t.get_text()))
    assert every == count_parameters(net)
