import inspect
import io

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from matplotlib import style

from helpers import classifiers, diagrams, figures, plane, plots, unet


def test_image_grid_shows_every_image_in_its_place():
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    figure = plots.image_grid(images, 3, captions=list("abcde"))
    assert len(figure.axes) == 6
    for axis, image, caption in zip(figure.axes, images, "abcde", strict=False):
        np.testing.assert_array_equal(axis.images[0].get_array(), image.permute(1, 2, 0).numpy())
        assert axis.get_xlabel() == caption
    assert not figure.axes[5].images
    figure = plots.image_grid(images[:4], 2, column_titles=["left", "right"], row_titles=["above", "below"])
    assert [axis.get_title() for axis in figure.axes] == ["left", "right", "", ""]
    assert [axis.get_ylabel() for axis in figure.axes] == ["above", "", "below", ""]
    few = plots.image_grid(images, 3, captions=list("abcdef"))
    assert [axis.get_xlabel() for axis in few.axes] == ["a", "b", "c", "d", "e", ""]
    none = plots.image_grid(images[:0], 2, title="none of them")
    assert len(none.axes) == 2
    assert not any(axis.images for axis in none.axes)


def test_image_grid_refuses_floats_which_it_would_show_in_other_colours():
    for images in (torch.zeros(2, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"expected images uint8 \(N, 3, H, W\)"):
            plots.image_grid(images, 2)


def test_animation_goes_there_and_back():
    frames = torch.arange(4, dtype=torch.uint8)[:, None, None, None, None].expand(4, 3, 3, 2, 2) * 50
    with PIL.Image.open(io.BytesIO(plots.animation(frames, 2).data)) as picture:
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
    figure = plots.training_curves({"a": {"every": 50, "loss": [0.0, 1.0, 2.0, 3.0]}, "b": {"loss": torch.ones(4)}})
    (axis,) = figure.axes
    assert axis.get_title(loc="left") == "training loss"
    assert [axis.lines[i].get_xdata().tolist() for i in (1, 3)] == [[50, 100, 150, 200], [1, 2, 3, 4]]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a", "b"]


def test_the_running_mean_is_over_steps_and_leaves_out_what_is_not_finite():
    losses = torch.tensor([1.0, torch.inf, 3.0, torch.nan, 5.0, 6.0])
    assert plots.smooth(losses, 2).tolist() == [1, 1, 3, 3, 5, 5.5]
    rising = torch.arange(100.0)
    (axis,) = plots.training_curves({"a": {"every": 50, "loss": rising}, "b": {"loss": rising}}, window=100).axes
    every, each = (axis.lines[i].get_ydata() for i in (1, 3))
    assert every[-1] == 98.5  # 100 steps are two values of these,
    assert each[-1] == 97  # and a hundred of those, but a twentieth of the curve at most


def test_a_steep_start_does_not_set_the_height_of_training_curves():
    loss = torch.cat([torch.tensor([90.0, 50.0]), torch.linspace(2, 1, 98)])
    (axis,) = plots.training_curves({"": {"loss": loss}}).axes
    low, high = axis.get_ylim()
    assert 0.8 < low < 1
    assert 2 < high < 2.2


def test_lines():
    figure = plots.lines({"a": (torch.tensor([1.0, 10]), torch.tensor([2.0, 3]))}, x="n", y="m", title="t", log_x=True)
    (axis,) = figure.axes
    assert axis.lines[0].get_xydata().tolist() == [[1, 2], [10, 3]]
    assert axis.get_xscale() == "log"
    assert axis.get_legend() is None
    two = plots.lines({name: (torch.arange(2.0), torch.arange(2.0)) for name in "ab"}, x="n", y="m", title="t")
    assert [text.get_text() for text in two.axes[0].get_legend().get_texts()] == ["a", "b"]
    assert two.axes[0].get_xscale() == "linear"


def test_long_curves_are_thinned_and_short_ones_whole():
    for steps, shown in ((1_999, 1_999), (6_000, 2_000)):
        (axis,) = plots.training_curves({"net": {"loss": torch.rand(steps)}}).axes
        assert len(axis.lines[0].get_xdata()) == shown


def test_as_many_curves_as_there_are_and_none_in_another_s_colour():
    curves = {f"curve {i}": (torch.arange(3.0), torch.arange(3.0) + i) for i in range(7)}
    (axis,) = plots.lines(curves, x="n", y="m", title="t").axes
    assert len(axis.lines) == 7
    assert len({str(line.get_color()) for line in axis.lines}) == 7


def test_the_seeds_of_a_net_share_its_colour_and_its_name():
    (axis,) = plots.training_curves({net: {"loss": torch.rand(2, 9)} for net in ("a", "b")}).axes
    assert len(axis.lines) == 8
    assert len({line.get_color() for line in axis.lines}) == 2
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a", "b"]


def test_table_is_markdown():
    assert (
        plots.table(["", "n"], [["a", 1], ["b", "2 ± 1"]]).data == "|  | n |\n| --- | ---: |\n| a | 1 |\n| b | 2 ± 1 |"
    )


def test_pm():
    assert plots.pm((1.25, 0.5), ".2f") == "1.25 ± 0.50"
    assert plots.pm((torch.tensor(1.25), float("nan")), ".1f") == "1.2"
    assert plots.pm((-1.25, 0.5), "+.2f") == "-1.25 ± 0.50"
    assert plots.pm(None, ".1f") == ""


def test_mean_std():
    assert plots.mean_std(torch.tensor([1.0, 3.0]), ".2f") == "2.00 ± 1.41"
    assert plots.mean_std(torch.tensor([1.0]), ".1f") == "1.0"


def test_bars_are_as_long_as_their_values_and_say_them():
    (axis,) = plots.bars({"a": 15.3, "b": (91.78, 1.5), "c": (2.0, float("nan"))}, title="t", form=".1f").axes
    assert [text.get_text().strip() for text in axis.texts] == ["15.3", "91.8 ± 1.5", "2.0"]
    assert [bar.get_width() for bar in axis.patches] == pytest.approx([15.3, 91.78, 2.0])
    assert axis.get_xlim()[1] > 91.78


def test_a_waterfall_falls_from_each_step_to_the_next_and_the_published_stand_where_they_are():
    (axis,) = plots.waterfall({"a": 90.0, "b": 40.0, "c": 15.0}, {"others": 44.0}, title="t").axes
    bars = [(bar.get_x(), bar.get_width()) for bar in axis.patches]
    assert [bar.get_y() + bar.get_height() / 2 for bar in axis.patches[::2]] == pytest.approx([0, 1, 2])
    assert axis.get_yticks().tolist() == [0, 1, 2]  # each beside its name
    assert bars == [(0, 90), (90, 0), (0, 40), (40, 50), (0, 15), (15, 25)]  # what is left, what was saved
    assert [text.get_text().strip() for text in axis.texts] == ["90.00", "40.00", "15.00", "44.00  others"]
    assert axis.lines[0].get_xdata().tolist() == [44, 44]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b", "c"]


def test_figures_are_closed_so_that_a_cell_shows_them_once():
    before = plt.get_fignums()
    figure = plots.bars({"a": 1.0, "b": 2.0}, title="t")
    assert plt.get_fignums() == before
    assert figures.png(figure).startswith(b"\x89PNG")


def test_listing_is_the_source_as_code():
    text = plots.listing(plots.smooth, plots.pm).data
    assert text == inspect.getsource(plots.smooth) + "\n\n" + inspect.getsource(plots.pm)
    text = plots.listing(classifiers.DigitSumClassifier.forward).data  # a method begins at the margin, too
    assert text.splitlines()[1].startswith("    return ")


NET = classifiers.DigitSumClassifier().eval()
FIGURES = [
    lambda: plots.image_grid(torch.arange(3 * 3 * 64, dtype=torch.uint8).view(3, 3, 8, 8), 2, captions=["a", "b", "c"]),
    lambda: plots.bars({"a": 15.3, "b": 91.78}, title="t"),
    lambda: plots.lines({"a": (torch.arange(3.0), torch.arange(3.0))}, x="n", y="m", title="t"),
    lambda: plots.training_curves({"a": {"loss": torch.arange(90.0)}, "b": {"loss": torch.ones(9)}}),
    lambda: plots.training_curves({"": {"loss": torch.arange(90.0)}}, title="step 90 of 100"),
    lambda: diagrams.unet_diagram(unet.UNet()),
    lambda: diagrams.adder_diagram(classifiers.DigitSumClassifier()),
    lambda: diagrams.layer_diagram(classifiers.PaperClassifier(), torch.zeros(1, 3, 28, 28)),
    lambda: plane.denoising(torch.eye(2), lambda x, sigma: x / 2, (0.1,), torch.ones(3, 2, 2)),
    lambda: plots.waterfall({"a": 9.0, "b": 4.0}, {"c": 5.0}, title="t"),
    lambda: plane.neon_panels(torch.eye(2), {weight: torch.eye(2) * weight for weight in (-1, 0, 1)}),
    lambda: diagrams.digit_sum(NET, torch.zeros(3, 28, 28, dtype=torch.uint8), (1, 2, 3)),
]


@pytest.mark.parametrize("figure", FIGURES)
def test_every_figure_says_in_a_sentence_what_it_shows(figure):
    assert len(figure().alt.split()) > 4
    assert figure().alt.endswith(".")


def test_the_sentence_names_what_the_figure_is_labelled_with():
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    grid = plots.image_grid(images, 2, title="two", column_titles=["left\nside", "right"], captions=["fox", "bowl"])
    assert grid.alt == "two; 2 images in 1 rows of 2; columns: left side, right; fox, bowl."
    curve = torch.arange(3.0), torch.tensor([4.0, 1.0, 5.0])
    lines = plots.lines({"a": curve}, x="n", y="m", title="t")
    assert lines.alt == "t; m by n; a: from 4 to 5, between 1 and 5."
    assert plots.bars({"a": (2.0, 0.5), "b": 3.0}, title="t").alt == "t; a: 2.00 ± 0.50; b: 3.00."
    assert plots.animation(images[None].expand(2, -1, -1, -1, -1), 2, "there and back").alt == "there and back"


@pytest.mark.parametrize("figure", FIGURES)
def test_figures_look_the_same_whatever_the_user_has_set_and_leave_that_as_it_was(figure):
    ours = figures.png(figure())
    with (
        style.context("dark_background"),
        matplotlib.rc_context({"image.origin": "lower", "axes.grid": True, "font.size": 20, "figure.dpi": 50}),
        matplotlib.rc_context({"savefig.dpi": 220, "savefig.pad_inches": 1, "savefig.transparent": True}),
    ):
        before = dict(matplotlib.rcParams)
        assert figures.png(figure()) == ours
        assert figure()._repr_png_() == ours
        assert dict(matplotlib.rcParams) == before


def test_what_a_user_has_set_of_files_is_kept():
    figure = FIGURES[1]()
    with matplotlib.rc_context({"savefig.dpi": 220, "svg.fonttype": "none"}):
        large, letters = io.BytesIO(), io.BytesIO()
        figure.savefig(large, format="png")
        figure.savefig(letters, format="svg")
    with PIL.Image.open(large) as picture:
        assert picture.size[0] == pytest.approx(220 * figure.get_figwidth(), abs=1)  # rounded or cut off
    assert b"<text" in letters.getvalue()


def test_axes_and_titles_of_a_page_that_set_no_look_are_not_cut_off():
    """As `%matplotlib inline` prints a figure: drawn and measured outside of any function of ours."""

    def printed():
        buffer, figure = io.BytesIO(), FIGURES[2]()
        figure.canvas.print_figure(buffer, format="png", bbox_inches="tight", facecolor="white", dpi=figure.dpi)
        return buffer.getvalue()

    with matplotlib.rc_context({"font.size": 30, "axes.unicode_minus": False, "ytick.labelsize": 20}):
        large = printed()
    assert large == printed()


@pytest.mark.parametrize("backend", ["agg", "svg", "module://matplotlib_inline.backend_inline"])
def test_a_notebook_shows_a_figure_whatever_the_backend(backend):
    """In a shell of its own, as a cell's last value is shown."""
    shell, before = InteractiveShell.instance(), matplotlib.get_backend()
    try:
        plt.switch_backend(backend)
        data, metadata = shell.display_formatter.format(FIGURES[1]())
    finally:
        plt.switch_backend(before)
        InteractiveShell.clear_instance()
    with (
        PIL.Image.open(io.BytesIO(data["image/png"])) as picture,
        PIL.Image.open(io.BytesIO(figures.png(FIGURES[1]()))) as expected,
    ):
        assert picture.tobytes() == expected.tobytes()
    assert metadata["image/png"]["alt"] == FIGURES[1]().alt


def test_signs_that_mean_something_to_tables_and_figures_are_shown_as_they_are():
    text = plots.table(["a|b", "c"], [["x | y", "|"]]).data
    assert [line.replace("\\|", "").count("|") for line in text.splitlines()] == [3, 3, 3]
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    costs = plots.table(["", "price"], [["two\nlines", "$5 and $6"]]).data
    assert costs.splitlines()[2:] == ["| two lines | \\$5 and \\$6 |"]
    sign = "$^$ or $5"
    drawn = [
        plots.image_grid(images, 2, title=sign, captions=[sign], column_titles=[sign], row_titles=[sign]),
        plots.bars({sign: 1.0, "b": (2.0, 0.5)}, title=sign),
        plots.waterfall({sign: 2.0, "b": 1.0}, {sign: 1.5}, title=sign),
        plots.lines({sign: (torch.arange(3), torch.arange(3)), "b": (torch.arange(3), torch.arange(3))},
                    x=sign, y=sign, title=sign),
        plots.training_curves({sign: {"loss": torch.rand(9)}, "b": {"loss": torch.rand(9)}}, title=sign),
    ]  # fmt: skip
    for figure in drawn:
        figures.png(figure)  # matplotlib reads formulas when it draws
        shown = [text for text in figure.findobj(matplotlib.text.Text) if "or" in text.get_text()]
        assert shown
        assert all(text.get_text().count("\\$") == 3 for text in shown)


def test_fewer_captions_than_images_name_the_first_ones():
    three = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    for captions in (["1", "2"], [1, 2], torch.tensor([1, 2])):
        figure = plots.image_grid(three, 3, captions=captions, column_titles=range(3), row_titles=[0])
        assert [axis.get_xlabel() for axis in figure.axes][1:] == [
            "tensor(2)" if isinstance(captions, torch.Tensor) else "2",
            "",
        ]
    plots.image_grid(three[:1].expand(150, -1, -1, -1), 150, captions=["a"] * 150)


@pytest.mark.parametrize(("low", "log"), [(0.001, True), (0.03, True), (0.04, False), (0.0, False)])
def test_curves_that_fall_by_more_than_thirty_times_are_drawn_on_a_logarithmic_axis(low, log):
    figure = plots.training_curves({"a": {"loss": torch.linspace(1.0, low, 20)}})
    assert (figure.axes[0].get_yscale() == "log") == log


def test_curves_may_be_losses_with_their_gradients():
    loss = torch.ones(9, requires_grad=True) * 2
    assert plots.training_curves({"a": {"loss": loss}}).axes[0].lines[0].get_ydata()[0] == 2
