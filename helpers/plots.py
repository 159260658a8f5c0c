"""Figures, tables and listings of the notebooks; each function returns what a cell shows."""

import inspect
import io
import textwrap
from collections.abc import Callable, Sequence

import numpy as np
import PIL.Image
import torch
from IPython.display import Code, Image, Markdown
from torch import Tensor
from torchvision.utils import make_grid

from helpers.figures import BLUE, GREY, INK, ORANGE, Picture, colours, empty, in_our_look, literal, said


def table(columns: list[str], rows: list[list]) -> Markdown:
    """A table with a heading for each column; the first column reads from the left, the others are figures."""
    rules = ["---", *["---:"] * (len(columns) - 1)]
    signs = str.maketrans({"|": "\\|", "$": "\\$", "\n": " "})  # which would mean something there
    cells = ([str(cell).translate(signs) for cell in row] for row in (columns, rules, *rows))
    return Markdown("\n".join(f"| {' | '.join(row)} |" for row in cells))


def pm(pair: tuple[float, float] | None, form: str) -> str:
    """(mean, standard deviation) for a table: "mean ± std", without the ± where that is NaN or None; "" for None."""
    if pair is None:
        return ""
    mean, std = (torch.nan if of is None else float(of) for of in pair)  # a card has null in place of NaN
    return f"{mean:{form}}" + (f" ± {std:{form.lstrip('+')}}" if std == std else "")


def mean_std(values: Tensor, form: str) -> str:
    """The mean and standard deviation of values (N,) for a table; of one value, itself."""
    return pm((values.mean(), values.std() if len(values) > 1 else torch.nan), form)


class Listing(Code):
    """IPython's Code, in letters of one width on static pages, too."""

    def _repr_html_(self) -> str:
        one_width = "<style>.listing pre { font-family: monospace; }</style>"
        return f"{one_width}<div class=listing>{super()._repr_html_()}</div>"


def listing(*sources: Callable) -> Listing:
    """The code of functions and classes, from the one place where it stands."""
    return Listing("\n\n".join(textwrap.dedent(inspect.getsource(source)) for source in sources), language="python")


@in_our_look
def image_grid(
    images: Tensor,
    columns: int,
    *,
    title: str = "",
    captions: Sequence[str] = (),
    column_titles: Sequence[str] = (),
    row_titles: Sequence[str] = (),
    inch: float | None = None,
) -> Picture:
    """Images row by row, with a title, a caption below each, a title above each column and beside each row.

    images: uint8 (N, 3, H, W), N from 0.
    columns: images side by side, from 1.
    title: of the whole.
    captions, column_titles, row_titles: one for each image, column, row; what is too much is left out.
    inch: the width of an image; as much as a page is wide, up to one inch, unless given.
    Raises ValueError on images of another kind.
    """
    images = torch.as_tensor(images)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected images uint8 (N, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    captions, column_titles, row_titles = ([*map(str, of)] for of in (captions, column_titles, row_titles))
    rows, above, beside = max(1, -(-len(images) // columns)), bool(title or column_titles), bool(row_titles)
    inch = inch or min(1.0, (8.2 - 1.2 * beside) / columns)
    size = columns * inch + 1.2 * beside, rows * (inch + (0.36 if captions else 0.03)) + 0.45 * above
    figure, axes = empty(rows, columns, size)
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.02, hspace=0.02)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for axis, image in zip(axes.flat, images, strict=False):
        axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
    _label(
        axes,
        [textwrap.fill(text, max(1, int(14 * inch))) for text in captions[: len(images)]],
        column_titles,
        row_titles,
    )
    if title:
        figure.suptitle(literal(title), x=0.01, ha="left", fontsize=11)
    names = ("rows: ", row_titles), ("columns: ", column_titles), ("", captions)
    named = (name + ", ".join(of) for name, of in names if of)
    figure.alt = said(title, f"{len(images)} images in {rows} rows of {columns}", *named)
    return figure


def _label(axes: np.ndarray, captions: Sequence[str], columns: Sequence[str], rows: Sequence[str]) -> None:
    for axis, text in zip(axes.flat, captions, strict=False):
        axis.set_xlabel(literal(text), fontsize=8.5, labelpad=2)
    for axis, text in zip(axes[0], columns, strict=False):
        axis.set_title(literal(text), fontsize=8.5, loc="center")
    for axis, text in zip(axes[:, 0], rows, strict=False):
        axis.set_ylabel(literal(text), fontsize=8.5, rotation=0, ha="right", va="center")


def animation(frames: Tensor, columns: int, alt: str = "") -> Image:
    """An animated PNG of frames uint8 (F, N, 3, H, W), in rows of `columns`, played there and back, 3 times larger.

    alt: what it shows, in words.
    """
    large = frames.repeat_interleave(3, dim=3).repeat_interleave(3, dim=4)
    sheets = [make_grid(frame, columns, padding=0, pad_value=255).permute(1, 2, 0).numpy() for frame in large]
    pages = [PIL.Image.fromarray(sheet) for sheet in [*sheets, *sheets[-2:0:-1]]]
    buffer = io.BytesIO()
    pages[0].save(buffer, "PNG", save_all=True, append_images=pages[1:], duration=150, loop=0)  # ms a frame
    return Image(buffer.getvalue(), format="png", alt=alt)


def addnist_examples(images: Tensor, column_titles: list[str], title: str = "") -> Picture:
    """Each AddNIST image taken apart: the colour image, then its three channels in grey. uint8 (N, 3, 28, 28)."""
    parts = torch.stack([images, *(images[:, [c]].expand_as(images) for c in range(3))])  # (4, N, 3, 28, 28)
    titles = {"title": title, "column_titles": column_titles, "row_titles": ["image", "red", "green", "blue"]}
    return image_grid(parts.flatten(0, 1), len(images), **titles)


def smooth(values: Tensor, window: int) -> Tensor:
    """Mean of each value and up to window - 1 before it, (N,) -> (N,); what is not finite counts as missing."""
    known = values.isfinite()
    sums = torch.cumsum(torch.where(known, values, 0.0).double(), 0)
    counts = torch.cumsum(known.double(), 0)
    sums[window:], counts[window:] = sums[window:] - sums[:-window], counts[window:] - counts[:-window]
    return sums / counts


@in_our_look
def training_curves(nets: dict[str, dict], *, window: int = 200, title: str = "") -> Picture:
    """One panel a quantity, one colour a net: net -> quantity -> values (N,) or, of R runs, (R, N); NaN: not reached.

    A net's "every", if there is one, is the number of steps between two of its values. Thin lines are the values,
    thick ones their running mean over `window` steps. A linear axis is as high as what follows the first 2% of a run,
    which are so steep that they would flatten the rest.
    """
    quantities = list(dict.fromkeys(quantity for net in nets.values() for quantity in net if quantity != "every"))
    figure, axes = empty(1, len(quantities), (4.2 * len(quantities), 2.9))
    for axis, quantity in zip(axes[0], quantities, strict=True):
        settled = []
        for (name, net), colour in zip(nets.items(), colours(len(nets)), strict=True):
            values = net.get(quantity, [])
            if not isinstance(values, Tensor):  # a card's, with null in place of NaN
                values = torch.from_numpy(np.array(values, dtype=np.float32))
            runs = torch.atleast_2d(values.detach().cpu().float())
            for i, values in enumerate(runs):
                _curve(axis, values, net.get("every", 1), window, color=colour, label=None if i else literal(name))
                settled.append(values[len(values) // 50 :])
        _set_height(axis, torch.cat(settled))
        axis.set_title(literal(f"training {quantity}"))
        axis.set_xlabel("optimisation step")
    if len(nets) > 1:
        axes[0][0].legend()
    if title:
        figure.suptitle(literal(title), x=0.01, ha="left", fontsize=10)
    figure.alt = said(title, f"training {' and '.join(quantities)} by optimisation step", *nets)
    return figure


def _curve(axis, values: Tensor, every: int, window: int, *, color: str, label: str | None) -> None:
    seen = values.isfinite().nonzero()[:, 0]
    thin = seen[:: max(1, len(seen) // 2000)]
    axis.plot(((thin + 1) * every).numpy(), values[thin].numpy(), color=color, alpha=0.2, linewidth=0.5)
    mean = smooth(values, max(1, min(window // every, len(values) // 20)))[seen]
    axis.plot(((seen + 1) * every).numpy(), mean.numpy(), color=color, linewidth=1.3, label=label)


def _set_height(axis, values: Tensor) -> None:
    """The finite ones of these values fill the panel."""
    values = values[values.isfinite()]
    if len(values) < 2 or values.min() == values.max():
        return
    low, high = values.min().item(), values.max().item()
    if low > 0 and high > 30 * low:
        axis.set_yscale("log")
    else:
        axis.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))


@in_our_look
def bars(values: dict[str, float | tuple[float, float]], *, title: str, form: str = ".2f") -> Picture:
    """A horizontal bar a value, or the mean of a pair (mean, standard deviation), its figure beside it."""
    pairs = [value if isinstance(value, tuple) else (value, float("nan")) for value in values.values()]
    figure, axes = empty(size=(8.2, 0.5 + 0.36 * len(values)))
    axis, heights, labels = axes[0][0], [mean for mean, _ in pairs], [pm(pair, form) for pair in pairs]
    axis.barh([literal(name) for name in values], heights, color=BLUE, height=0.6)
    for row, (height, label) in enumerate(zip(heights, labels, strict=True)):
        axis.text(max(height, 0), row, f"  {label}", va="center")
    axis.invert_yaxis()
    axis.set_xlim(min(0, *heights) * 1.1, max(heights) * 1.25)
    axis.set_title(literal(title))
    figure.alt = said(title, *(f"{name}: {label}" for name, label in zip(values, labels, strict=True)))
    return figure


@in_our_look
def waterfall(steps: dict[str, float], published: dict[str, float], *, title: str) -> Picture:
    """Bars that fall from one step to the next, what each saved in a paler shade; dashed: what others published."""
    figure, axes = empty(size=(8.2, 0.6 + 0.42 * (len(steps) + len(published))))
    axis, before = axes[0][0], None
    for row, value in enumerate(steps.values()):
        axis.barh(row, value, color=BLUE if row else GREY, height=0.6)
        axis.barh(row, (before or value) - value, left=value, color=BLUE, alpha=0.2, height=0.6)
        axis.text(max(before or 0, value), row, f"  {value:.2f}", va="center", weight="bold")
        before = value
    axis.set(yticks=range(len(steps)), yticklabels=[*map(literal, steps)], title=literal(title))
    axis.set_xlim(0, 1.12 * max(steps.values()))
    for row, (name, value) in enumerate(published.items(), start=len(steps)):
        axis.plot([value, value], [-0.5, row + 0.2], "--", color=ORANGE, linewidth=1)
        axis.text(value + 0.8, row, f"{value:.2f}  {literal(name)}", va="center", color=INK, fontsize=8.5)
    axis.invert_yaxis()
    figure.alt = said(title, *(f"{name}: {value:.2f}" for name, value in (steps | published).items()))
    return figure


@in_our_look
def lines(curves: dict[str, tuple[Tensor, Tensor]], *, x: str, y: str, title: str, log_x: bool = False) -> Picture:
    """Lines with dots at their points.

    curves: name -> (x values, y values), both (N,).
    x, y, title: labels of the axes, and what stands above.
    log_x: whether the x axis is logarithmic.
    """
    figure, axes = empty(size=(8.2, 3.0))
    axis = axes[0][0]
    for (name, points), colour in zip(curves.items(), colours(len(curves)), strict=True):
        across, up = (torch.as_tensor(part).numpy() for part in points)
        axis.plot(across, up, "o-", color=colour, markersize=3, label=literal(name))
    axis.set(xlabel=literal(x), ylabel=literal(y), title=literal(title), xscale="log" if log_x else "linear")
    if len(curves) > 1:
        axis.legend(**{"loc": "center left", "bbox_to_anchor": (1, 0.5)} if len(curves) > 2 else {})  # many go beside
    ways = []
    for name, (_, up) in curves.items():
        first, last, least, most = (float(value) for value in (up[0], up[-1], min(up), max(up)))
        ways.append(f"{name}: from {first:.3g} to {last:.3g}, between {least:.3g} and {most:.3g}")
    figure.alt = said(title, f"{y} by {x}", *ways)
    return figure
