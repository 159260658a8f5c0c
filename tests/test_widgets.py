import ipywidgets as w
import pytest
import torch

from helpers import classifiers, data, diffusion, widgets
from helpers.unet import UNet

CLASSES = ["ant", "bee", "cat", "dog", "elk"]


def _find(widget, kind, description):
    if isinstance(widget, kind) and getattr(widget, "description", "") == description:
        return widget
    found = (_find(child, kind, description) for child in getattr(widget, "children", ()))
    return next((f for f in found if f is not None), None)


@pytest.fixture
def explorer():
    torch.manual_seed(0)
    net = UNet((8, 16), (1, 1), 5)
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return widgets.walk_explorer(diffusion.Denoiser(net).eval(), CLASSES, start=("cat", "ant"), frames=3, steps=2)


def test_walk_explorer_moves_between_classes_and_seeds(explorer):
    picture = _find(explorer, w.Image, "")
    position = _find(explorer, w.SelectionSlider, "position")
    first = bytes(picture.value)
    assert first.startswith(b"\x89PNG")
    position.value = 1.0
    last = picture.value
    assert last != first
    _find(explorer, w.Dropdown, "to").value = CLASSES.index("dog")
    assert picture.value != last
    position.value = 0.0
    assert picture.value == first  # the other end does not depend on it, and the frame is the same
    _find(explorer, w.BoundedIntText, "seed").value = 9
    assert picture.value != first


def test_play_drives_the_position(explorer):
    play = _find(explorer, w.Play, "play")
    play.value = 1
    assert _find(explorer, w.SelectionSlider, "position").value == 0.5


def test_digit_explorer_changes_the_picture():
    images, labels = (part[:5] for part in data.addnist("", "test", "demo"))
    explorer = widgets.digit_explorer(classifiers.PaperClassifier().eval(), images, labels)
    picture = _find(explorer, w.Image, "")
    first = picture.value
    _find(explorer, w.IntSlider, "example").value = 3
    assert picture.value != first
