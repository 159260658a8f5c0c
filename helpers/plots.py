"""Figures, tables and listings of the notebooks; each function returns what a cell shows."""

from __future__ import annotations

import inspect
import io
import sys
import textwrap
from collections.abc import Callable

import matplotlib.pyplot as plt
import PIL.Image
import torch
from IPython import get_ipython
from IPython.display import Code, Image, Markdown
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

INK, BLUE, ORANGE, GREY = "#222222", "#3465a4", "#d9730d", "#9a9a9a"
LOOK = {"figure.dpi": 110, "figure.facecolor": "white", "axes.spines.top": False, "axes.spines.right": False,
        "axes.titlesize": 11, "axes.titlelocation": "left", "font.size": 9, "legend.frameon": False}  # fmt: skip
plt.rcParams.update(LOOK)  # one look for every figure of the notebooks


def _show_anywhere() -> None:
    """Pictures appear whatever matplotlib's backend, and text on whatever terminal.

    Without this a notebook shows a figure only where the inline backend has said how, and an ASCII terminal stops a
    script at the first ±.
    """
    shell = get_ipython()
    if shell:
        shell.display_formatter.formatters["image/png"].for_type(Figure, png)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def empty(rows: int = 1, columns: int = 1, size: tuple[float, float] = (7, 3.2)):
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    plt.close(figure)  # shown by returning it, once, not a second time by the inline backend
    return figure, axes


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, for an image widget."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    return buffer.getvalue()


_show_anywhere()


def colours(count: int) -> list:
    """As many colours as there are curves, none twice: the house's first."""
    named = [BLUE, ORANGE, GREY, INK, "#4e9a06", "#ad7fa8"]
    return [*named, *(plt.get_cmap("viridis")(i / count) for i in range(count - len(named)))][:count]


# --- text -------------------------------------------------------------------------------------------------------


def table(columns: list[str], rows: list[list]) -> Markdown:
    """A table with a heading for each column; the first column reads from the left, the others are figures."""
    rules = ["---", *["---:"] * (len(columns) - 1)]
    return Markdown("\n".join(f"| {' | '.join(map(str, row))} |" for row in (columns, rules, *rows)))


def pm(pair: tuple[float, float] | None, form: str) -> str:
    """(mean, standard deviation) for a table: "mean ± std", without the ± where that is NaN; "" for None."""
    if pair is None:
        return ""
    mean, std = map(float, pair)
    return f"{mean:{form}}" + (f" ± {std:{form.lstrip('+')}}" if std == std else "")


def mean_std(values: Tensor, form: str) -> str:
    """The mean and standard deviation of values (N,) for a table; of one value, itself."""
    return pm((values.mean(), values.std() if len(values) > 1 else torch.nan), form)


class Listing(Code):
    """IPython's Code, in letters of one width on static pages, too."""

    def _repr_html_(self) -> str:
        return (
            f"<style>.listing pre {{ font-family: monospace; }}</style><div class=listing>{super()._repr_html_()}</div>"
        )


def listing(*sources: Callable) -> Listing:
    """The code of functions and classes, from the one place where it stands."""
    return Listing("\n\n".join(map(inspect.getsource, sources)), language="python")


# --- images -----------------------------------------------------------------------------------------------------


def image_grid(
    images: Tensor, columns: int, *, title: str = "", captions: list[str] | None = None,
    column_titles: list[str] | None = None, row_titles: list[str] | None = None, inch: float = 0.75,
) -> Figure:  # fmt: skip
    """uint8 images (N, 3, H, W), row by row, N from 0; captions one an image, titles one a column or row."""
    images = torch.as_tensor(images)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected images uint8 (N, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    rows = max(1, -(-len(images) // columns))
    room = 0.32 if captions else 0.03
    size = (columns * inch + (1.1 if row_titles else 0), rows * (inch + room) + (0.4 if title or column_titles else 0))
    figure, axes = empty(rows, columns, size)
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.02, hspace=0.02)
    for i, axis in enumerate(axes.flat):
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        if i >= len(images):
            continue
        axis.imshow(images[i].permute(1, 2, 0).numpy(), interpolation="nearest")
        if captions:
            axis.set_xlabel(textwrap.fill(captions[i], 14), fontsize=6.5, labelpad=2)
        if column_titles and i < columns:
            axis.set_title(column_titles[i], fontsize=7.5, loc="center")
        if row_titles and i % columns == 0:
            axis.set_ylabel(row_titles[i // columns], fontsize=7.5, rotation=0, ha="right", va="center")
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def animation(frames: Tensor, columns: int) -> Image:
    """Frames uint8 (F, N, 3, H, W), N images side by side in rows of `columns`, played there and back, 3 times larger.

    An animated PNG: browsers play it without any program, and where it does not play it shows the first frame.
    """
    count, height, width = frames.shape[1], frames.shape[3], frames.shape[4]
    white = frames.new_full((len(frames), -count % columns, 3, height, width), 255)
    tiles = torch.cat([frames, white], dim=1).unflatten(1, (-1, columns))  # (F, rows, columns, 3, H, W)
    sheets = tiles.permute(0, 1, 4, 2, 5, 3).reshape(len(frames), -1, columns * width, 3)
    sheets = sheets.repeat_interleave(3, dim=1).repeat_interleave(3, dim=2)
    pages = [PIL.Image.fromarray(sheet.numpy()) for sheet in torch.cat([sheets, sheets[1:-1].flip(0)])]
    buffer = io.BytesIO()
    pages[0].save(buffer, "PNG", save_all=True, append_images=pages[1:], duration=150, loop=0)  # ms a frame
    return Image(buffer.getvalue(), format="png")


def addnist_examples(images: Tensor, column_titles: list[str], title: str = "") -> Figure:
    """Each AddNIST image taken apart: the colour image, then its three channels in grey. uint8 (N, 3, 28, 28)."""
    parts = torch.stack([images, *(images[:, [c]].expand_as(images) for c in range(3))])  # (4, N, 3, 28, 28)
    return image_grid(parts.flatten(0, 1), len(images), title=title, column_titles=column_titles,
                      row_titles=["image", "red", "green", "blue"])  # fmt: skip


# --- training ---------------------------------------------------------------------------------------------------


def smooth(values: Tensor, window: int) -> Tensor:
    """Mean of each value and up to window - 1 before it, (N,) -> (N,); NaN counts as missing."""
    known = values.isfinite()
    sums = torch.cumsum(torch.where(known, values, 0.0).double(), 0)
    counts = torch.cumsum(known.double(), 0)
    sums[window:], counts[window:] = sums[window:] - sums[:-window], counts[window:] - counts[:-window]
    return sums / counts


def training_curves(nets: dict[str, dict], *, window: int = 200) -> Figure:
    """One panel a quantity, one colour a net: net -> quantity -> values (N,) or, of R runs, (R, N); NaN: not reached.

    A net's "every", if there is one, is the number of steps between two of its values. Thin lines are the values,
    thick ones their running mean over `window` steps. The height is that of what follows the first 2% of a run, which
    are so steep that they would flatten the rest.
    """
    quantities = list(dict.fromkeys(quantity for net in nets.values() for quantity in net if quantity != "every"))
    figure, axes = empty(1, len(quantities), (4.2 * len(quantities), 2.9))
    for axis, quantity in zip(axes[0], quantities, strict=True):
        settled = []
        for (name, net), colour in zip(nets.items(), colours(len(nets)), strict=True):
            every, runs = net.get("every", 1), torch.as_tensor(net.get(quantity, [])).detach().cpu().float()
            for i, values in enumerate(torch.atleast_2d(runs)):
                seen = values.isfinite().nonzero()[:, 0]
                thin = seen[:: max(1, len(seen) // 2000)]
                axis.plot(((thin + 1) * every).numpy(), values[thin].numpy(), color=colour, alpha=0.2, linewidth=0.5)
                mean = smooth(values, max(1, min(window // every, len(values) // 20)))[seen]
                label = None if i else name
                axis.plot(((seen + 1) * every).numpy(), mean.numpy(), color=colour, linewidth=1.3, label=label)
                settled.append(values[len(values) // 50 :])
        settled = torch.cat(settled)
        settled = settled[settled.isfinite()]
        if len(settled) > 1 and settled.min() < settled.max():
            low, high = settled.min().item(), settled.max().item()
            if low > 0 and high > 30 * low:
                axis.set_yscale("log")
            else:
                axis.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
        axis.set_title(quantity)
        axis.set_xlabel("optimisation step")
    if len(nets) > 1:
        axes[0][0].legend()
    return figure


# --- figures of results -----------------------------------------------------------------------------------------


def bars(values: dict[str, float | tuple[float, float]], *, title: str, ours: set[str] | None = None) -> Figure:
    """A horizontal bar a value, or (value, ± whisker), its figure beside it; grey where it is not among `ours`."""
    figure, axes = empty(size=(6.5, 0.5 + (0.42 if len(values) < 9 else 0.22) * len(values)))
    axis, pairs = axes[0][0], [bar if isinstance(bar, tuple | list) else (bar, 0) for bar in values.values()]
    lengths, errors = zip(*pairs, strict=True)
    shades = [BLUE if ours is None or name in ours else GREY for name in values]
    axis.barh(list(values), lengths, xerr=errors, color=shades, ecolor=INK, height=0.6)
    for row, (value, error) in enumerate(pairs):
        axis.text(value + error, row, f"  {value:.2f}", va="center")
    axis.invert_yaxis()
    axis.set_xlim(0, max(map(sum, pairs)) * 1.18)
    axis.set_title(title)
    return figure


def lines(curves: dict[str, tuple[Tensor, Tensor]], *, x: str, y: str, title: str, log_x: bool = False) -> Figure:
    """One line a curve: name -> (x values, y values), both (N,)."""
    figure, axes = empty(size=(6, 2.8))
    axis = axes[0][0]
    for (name, points), colour in zip(curves.items(), colours(len(curves)), strict=True):
        across, up = (torch.as_tensor(part).numpy() for part in points)
        axis.plot(across, up, "o-", color=colour, markersize=3, label=name)
    axis.set(xlabel=x, ylabel=y, title=title, xscale="log" if log_x else "linear")
    if len(curves) > 1:
        axis.legend(**{"loc": "center left", "bbox_to_anchor": (1, 0.5)} if len(curves) > 2 else {})  # many go beside
    return figure


# --- classifier results -----------------------------------------------------------------------------------------


def confusion_matrix(labels: Tensor, predictions: Tensor, classes: int, title: str) -> Figure:
    """Share of each true class (rows) given each answer (columns); int64 (N,) each."""
    counts = F.one_hot(labels, classes).float().T @ F.one_hot(predictions, classes).float()
    shares = counts / counts.sum(dim=1, keepdim=True).clamp_min(1)
    figure, axes = empty(size=(5.4, 4.6))
    axis = axes[0][0]
    mesh = axis.imshow(shares.numpy(), cmap="Blues", norm=PowerNorm(0.4, 0, 1))  # so that rare errors show
    axis.set(xlabel="answer", ylabel="true label", title=title)
    axis.set_xticks(range(classes))
    axis.set_yticks(range(classes))
    axis.tick_params(labelsize=7)
    figure.colorbar(mesh, label="share of the true class", shrink=0.8)
    return figure


def error_sizes(labels: Tensor, predictions: Tensor, title: str) -> Figure:
    """How far off the wrong answers are: histogram of answer - label, int64 (N,) each."""
    off = (predictions - labels)[predictions != labels]
    figure, axes = empty(size=(6.5, 2.4))
    values, counts = off.unique(return_counts=True)
    axis = axes[0][0]
    axis.bar(values.numpy(), (counts / len(labels)).numpy(), color=BLUE)
    axis.set(xlabel="answer - true label", ylabel="share of all", title=title)
    if len(off) == 0:
        axis.set(xticks=[0], yticks=[0])
        axis.text(0.5, 0.5, "none", transform=axis.transAxes)
    return figure


def calibration(models: dict[str, tuple[Tensor, Tensor]], title: str) -> Figure:
    """Reliability diagram: how often answers of a given confidence are right; on the diagonal, a net is calibrated.

    models: name -> (probabilities (N, classes), labels (N,)). A dot a bin of confidence, the larger the more answers
    fell into it; the legend gives the expected calibration error, the mean distance from the diagonal.
    """
    figure, axes = empty(size=(4.6, 3.8))
    axis = axes[0][0]
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
    for (name, (probabilities, labels)), colour in zip(models.items(), colours(len(models)), strict=True):
        confidence, right, share = reliability(probabilities, labels)
        error = float((share * (confidence - right).abs()).sum())
        axis.plot(confidence.numpy(), right.numpy(), color=colour, label=f"{name}: calibration error {error:.2%}")
        axis.scatter(confidence.numpy(), right.numpy(), s=(10 + 150 * share).numpy(), color=colour)
    axis.set(xlabel="confidence", ylabel="share of right answers", title=title, xlim=(0, 1.03), ylim=(0, 1.03))
    axis.legend(loc="lower right")
    return figure


def reliability(probabilities: Tensor, labels: Tensor, bins: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """Answers in bins of equal width by confidence -> (mean confidence, share that is right, share of all answers).

    Source: Guo et al. 2017. Empty bins are left out.
    """
    confidence, answers = probabilities.max(dim=1)
    if len(labels) != len(answers) or probabilities.min() < 0 or confidence.max() > 1 + 1e-5:
        raise ValueError("expected probabilities (N, classes), from 0 to 1, and as many labels")
    rows = (confidence * bins).long().clamp_max(bins - 1)
    counts = rows.bincount(minlength=bins)
    sums = [rows.bincount(weights=values.float(), minlength=bins) for values in (confidence, answers == labels)]
    used = counts > 0
    x, y = (total[used] / counts[used] for total in sums)
    return x, y, counts[used] / len(labels)
