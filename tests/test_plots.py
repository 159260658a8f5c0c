import io
import re

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import pytest
import torch

from helpers import batches, plots, unet
from helpers.budget import count_parameters
from helpers.classifiers import DigitSumClassifier, PaperClassifier


def _texts(figure):
    found = [text.get_text() for axis in figure.axes for text in axis.texts]
    return found + [axis.get_title(loc=loc) for axis in figure.axes for loc in ("left", "center")]


def test_image_grid_shows_every_image_in_its_place():
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    figure = plots.image_grid(images, 3, captions=list("abcde"))
    assert len(figure.axes) == 6
    for axis, image, caption in zip(figure.axes, images, "abcde", strict=False):
        np.testing.assert_array_equal(axis.images[0].get_array(), image.permute(1, 2, 0).numpy())
        assert axis.get_xlabel() == caption
    assert not figure.axes[5].images


def test_animation_goes_there_and_back():
    frames = torch.arange(4, dtype=torch.uint8)[:, None, None, None, None].expand(4, 3, 3, 2, 2) * 50
    with PIL.Image.open(io.BytesIO(plots.animation(frames, 2, zoom=3).data)) as picture:
        assert picture.size == (12, 12)
        assert picture.n_frames == 6
        seen = []
        for page in range(6):
            picture.seek(page)
            seen.append(picture.convert("RGB").getpixel((0, 0))[0])
        assert seen == [0, 50, 100, 150, 100, 50]
        assert picture.convert("RGB").getpixel((11, 11)) == (255, 255, 255)  # no fourth image


def test_smooth_is_a_running_mean_that_skips_what_is_missing():
    values = torch.tensor([1.0, 3.0, float("nan"), 5.0, 7.0])
    assert plots.smooth(values, 2).tolist() == [1, 2, 3, 5, 6]


def test_training_curves_place_values_at_their_steps():
    figure = plots.training_curves({"a": {"loss": torch.arange(4.0)}, "b": {"loss": torch.ones(4)}}, every=50)
    (axis,) = figure.axes
    assert axis.get_title(loc="left") == "loss"
    assert axis.lines[1].get_xdata().tolist() == [50, 100, 150, 200]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a", "b"]


def test_a_steep_start_does_not_set_the_height_of_training_curves():
    loss = torch.cat([torch.tensor([90.0, 50.0]), torch.linspace(2, 1, 98)])
    (axis,) = plots.training_curves({"": {"loss": loss}}).axes
    low, high = axis.get_ylim()
    assert 0.8 < low < 1
    assert 2 < high < 2.2


def test_confusion_matrix_rows_are_shares():
    figure = plots.confusion_matrix(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 3, "t")
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), [[0.5, 0.5, 0], [0, 1, 0], [0, 0, 0]])


def test_error_sizes():
    figure = plots.error_sizes(torch.tensor([3, 3, 3, 3]), torch.tensor([3, 4, 4, 1]), "t")
    bars = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in figure.axes[0].patches}
    assert bars == pytest.approx({-2: 0.25, 1: 0.5})
    figure = plots.error_sizes(torch.tensor([3, 3]), torch.tensor([3, 3]), "t")
    assert [text.get_text() for text in figure.axes[0].texts] == ["none"]


def test_lines():
    figure = plots.lines({"a": (torch.tensor([1.0, 10]), torch.tensor([2.0, 3]))}, x="n", y="m", title="t", log_x=True)
    (axis,) = figure.axes
    assert axis.lines[0].get_xydata().tolist() == [[1, 2], [10, 3]]
    assert axis.get_xscale() == "log"


def test_reliability():
    """Of ten answers given with 65%, six are right; of thirty with 95%, all: 5% off in either bin."""
    confidence = torch.tensor([0.65] * 10 + [0.95] * 30)
    probabilities = torch.stack([confidence, 1 - confidence], dim=1)
    labels = torch.tensor([0] * 6 + [1] * 4 + [0] * 30)
    x, y, share = plots.reliability(probabilities, labels)
    torch.testing.assert_close(x, torch.tensor([0.65, 0.95]))
    torch.testing.assert_close(y, torch.tensor([0.6, 1.0]))
    assert share.tolist() == [0.25, 0.75]
    figure = plots.calibration({"net": (probabilities, labels)}, "t")
    assert "5.00%" in figure.axes[0].get_legend().get_texts()[0].get_text()


def test_digit_sum_shows_the_nets_own_distributions():
    torch.manual_seed(0)
    net = DigitSumClassifier().eval()
    image = torch.randint(0, 256, (3, 28, 28), dtype=torch.uint8)
    figure = plots.digit_sum(net, image, (3, 4, 5))
    read = net.digit_log_probabilities(batches.normalise(image[None]))[0].exp().detach()
    axes = {axis.get_label(): axis for axis in figure.axes}
    for channel in range(3):
        np.testing.assert_array_equal(axes[str(channel)].images[0].get_array(), image[channel].numpy())
        heights = [bar.get_height() for bar in axes[f"r{channel}"].patches]
        np.testing.assert_allclose(heights, read[channel], rtol=1e-5)
    heights = [bar.get_height() for bar in axes["sum"].patches[:28]]
    assert sum(heights) == pytest.approx(1, abs=1e-5)
    assert heights[27] == pytest.approx(float(read[:, 9].prod()), rel=1e-4)
    assert axes["sum"].get_title(loc="left").startswith("3 + 4 + 5 = 12")


def test_diagrams_say_what_the_nets_are():
    net = PaperClassifier().eval()
    texts = " ".join(_texts(plots.layer_diagram(net, torch.zeros(1, 3, 28, 28))))
    assert f"{count_parameters(net):,} in all" in texts
    assert texts.count("conv 3×3") == 4
    assert texts.count("max pool") == 3
    assert "64×3×3" in texts
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("net", [unet.UNet((8, 16), (1, 2), loops=(1, 3)), unet.plain()])
def test_the_diagram_of_a_unet_adds_up_and_says_how_often_a_block_is_used(net):
    texts = _texts(plots.unet_diagram(net))
    for width, blocks in {level[0].conv_out.out_channels: len(level) for level in [*net.down, *net.up]}.items():
        assert texts.count(f"block {width}") == blocks * (1 if width == net.down[-1][0].conv_out.out_channels else 2)
    assert texts.count("3 times") == (1 if net.loops[-1] == 3 else 0)
    (title,) = [text for text in texts if "parameters:" in text]
    total, rest = (int(part.replace(",", "")) for part in re.findall(r"[\d,]*\d", title))
    assert total == count_parameters(net)
    assert total - rest == sum(int(text.replace(",", "")) for text in texts if re.fullmatch(r"[\d,]+", text))


def test_figures_are_closed_so_that_a_cell_shows_them_once():
    before = plt.get_fignums()
    figure = plots.bars({"a": 1.0, "b": 2.0}, title="t", spread={"a": 0.1, "b": 0.2})
    assert plt.get_fignums() == before
    assert plots.png(figure).startswith(b"\x89PNG")
