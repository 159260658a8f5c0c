"""Drawings by code: nets (layers in a row, the U of the U-Net), the sum of digits, how a denoiser works."""

import copy
from collections.abc import Sequence

import torch
from matplotlib.patches import FancyArrowPatch, Rectangle
from torch import Tensor, nn

from helpers.batches import normalise, to_uint8
from helpers.budget import count_parameters
from helpers.classifiers import DigitSumClassifier
from helpers.figures import BLUE, INK, ORANGE, Picture, blank, empty, in_our_look, said
from helpers.plots import image_grid
from helpers.training import uncompiled

COLOUR_NAMES = "red", "green", "blue"


@in_our_look
def digit_sum(net: DigitSumClassifier, image: Tensor, digits: Sequence[int]) -> Picture:
    """How the net adds: the image, each channel, the distribution of its digit, and the net's answer, that of the sum.

    image: uint8 (3, 28, 28); digits: the three that it shows, drawn in orange. AddNIST has no sum of 0 or above 20.
    """
    net = uncompiled(copy.deepcopy(net)).eval()  # the caller's stays as it is
    with torch.no_grad():
        x = normalise(image[None])
        read, sums = net.digit_log_probabilities(x)[0].exp(), net(x)[0].exp()  # (3, 10), (20,)
    figure, total, best = blank((8.2, 2.7)), sum(digits), int(sums.argmax())
    axes = figure.subplot_mosaic([["image", "0", "1", "2", "sum"], ["image", "r0", "r1", "r2", "sum"]],
                                 width_ratios=[1.1, 1, 1, 1, 2.4])  # fmt: skip
    axes["image"].imshow(image.permute(1, 2, 0).numpy())
    axes["image"].axis("off")
    for i, name in enumerate(COLOUR_NAMES):
        axes[str(i)].imshow(image[i].numpy(), cmap="gray", vmin=0, vmax=255)
        axes[str(i)].axis("off")
        axes[str(i)].set_title(f"{name}: {digits[i]}", loc="center")
        _distribution(axes[f"r{i}"], range(10), read[i], digits[i])
        axes[f"r{i}"].set_xlabel(f"read {int(read[i].argmax())}")
    _distribution(axes["sum"], range(1, 21), sums, total)
    known = "orange: the true one" if 1 <= total <= 20 else f"AddNIST has no label for {total}"
    axes["sum"].set(xlabel=f"sum ({known})", xticks=range(1, 21, 3))
    axes["sum"].set_title(f"{' + '.join(map(str, digits))} = {total}; read {best + 1} ({sums.max():.1%})")
    said_by = ", ".join(f"{name} {digits[i]}, read {int(read[i].argmax())}" for i, name in enumerate(COLOUR_NAMES))
    figure.alt = said("An AddNIST image taken apart and added up", said_by, axes["sum"].get_title(loc="left"))
    return figure


def _distribution(axis, values: range, probabilities: Tensor, true: int) -> None:
    axis.bar(values, probabilities.numpy(), color=[ORANGE if value == true else BLUE for value in values])
    axis.set(ylim=(0, 1.05), yticks=[0, 1], xticks=values)
    axis.tick_params(labelsize=7.5)


def _box(axis, x: float, y: float, w: float, h: float, text: str, colour: str, under: str = "") -> None:
    axis.add_patch(Rectangle((x, y - h / 2), w, h, facecolor=colour, edgecolor=INK, linewidth=0.8))
    axis.text(x + w / 2, y, text, ha="center", va="center", fontsize=8, rotation=90 if h > 1.6 * w else 0)
    if under:
        axis.text(x + w / 2, y - h / 2 - 0.12, under, ha="center", va="top", fontsize=7.5, color="#444444")


def _arrow(axis, start: tuple[float, float], end: tuple[float, float], **style) -> None:
    axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=8, color=INK, linewidth=0.8, **style))


NAMES = {nn.Conv2d: "conv", nn.BatchNorm2d: "batch norm", nn.Linear: "linear"}
NAMES |= {nn.MaxPool2d: "max pool", nn.AvgPool2d: "mean pool"}
COLOURS = {"conv": "#cfe0f3", "linear": "#f6dfc5", "max": "#f0f0f0", "mean": "#f0f0f0"}  # by the first word
COLOURS |= {"block": "#cfe0f3", "attention": "#f6dfc5", "1×1": "#f0f0f0"}  # of the U-Net


def _layers(net: nn.Module, example: Tensor) -> list[tuple[str, tuple[int, ...], int]]:
    """(kind, output shape, parameters) of each layer that `example` meets; a batch norm counts to what it follows."""
    net, rows = uncompiled(copy.deepcopy(net)).eval(), []  # the caller's stays as it is

    def note(layer: nn.Module, _, out: Tensor) -> None:
        count = count_parameters(layer)
        if isinstance(layer, nn.BatchNorm2d) and rows:
            kind, shape, before = rows.pop()
            rows.append((kind, shape, before + count))
        else:
            kind = next(name for of, name in NAMES.items() if isinstance(layer, of))
            if isinstance(layer, nn.Conv2d):
                kind += f" {'×'.join(map(str, layer.kernel_size))}"
                kind += f", stride {layer.stride[0]}" if layer.stride[0] > 1 else ""
            rows.append((kind, tuple(out.shape[1:]), count))

    hooks = [layer.register_forward_hook(note) for layer in net.modules() if isinstance(layer, tuple(NAMES))]
    with torch.no_grad():
        net(example)
    for hook in hooks:
        hook.remove()
    return rows


def _row_of_layers(axis, rows: list[tuple[str, tuple[int, ...], int]], start: float) -> None:
    for i, (kind, shape, count) in enumerate(rows):
        x = start + 1.15 * i
        height = 0.9 + 1.3 * (shape[1] / 28 if len(shape) == 3 else shape[0] / 96)
        under = "×".join(map(str, shape)) + (f"\n{count:,}" if count else "")
        _box(axis, x, 0, 0.5, height, kind, COLOURS.get(kind.split()[0], "white"), under)
        if i:
            _arrow(axis, (x - 0.62, 0), (x - 0.03, 0))


@in_our_look
def layer_diagram(net: nn.Module, example: Tensor) -> Picture:
    """A net of plain layers drawn from left to right, as one forward pass of `example` (1, …) meets them.

    Convolutions (with their batch norm), linear layers and pools get a box with output shape and parameter count.
    """
    rows = [("input", tuple(example.shape[1:]), 0), *_layers(net, example)]
    figure, axes = empty(size=(9, 2.6))
    axis = axes[0][0]
    _row_of_layers(axis, rows, 0)
    axis.set(xlim=(-0.3, len(rows) * 1.15), ylim=(-1.6, 1.2))
    axis.axis("off")
    axis.set_title(f"{type(net).__name__}: output shapes and parameters, {count_parameters(net):,} in all")
    figure.alt = said(axis.get_title(loc="left"), *(f"{kind} {shape}" for kind, shape, _ in rows))
    return figure


@in_our_look
def adder_diagram(net: DigitSumClassifier) -> Picture:
    """The digit-sum net: three channels, one reader that serves them all, and the sum, which has no parameters."""
    rows = _layers(net.reader, torch.zeros(1, 1, 28, 28))
    figure, axes = empty(size=(9, 3.2))
    axis, first, end = axes[0][0], 1.7, 1.7 + 1.15 * len(rows)
    for y, name, colour in ((1.2, "red", "#e8b4b4"), (0, "green", "#b9dcb4"), (-1.2, "blue", "#b4c4e8")):
        _box(axis, 0, y, 0.7, 0.8, name, colour, "28×28")
        _arrow(axis, (0.75, y), (first - 0.05, y / 6))
        _arrow(axis, (end - 0.6, y / 6), (end + 0.1, y))
        _box(axis, end + 0.15, y, 0.7, 0.8, "digit", "white", "10")
        _arrow(axis, (end + 0.9, y), (end + 1.45, y / 6))
    _row_of_layers(axis, rows, first)
    axis.text((first + end) / 2 - 0.3, 1.55, "one reader, used three times", ha="center", fontsize=8)
    _box(axis, end + 1.5, 0, 0.5, 1.8, "exact sum", "#d9ecd0", "20\n0")
    axis.set(xlim=(-0.2, end + 2.2), ylim=(-2.1, 1.8))
    axis.axis("off")
    total = sum(count for *_, count in rows)
    axis.set_title(f"{type(net).__name__}: output shapes and parameters, {total:,} in all")
    used = (
        "red, green and blue go through one reader of digits; its three answers go into an exact sum of no parameters"
    )
    figure.alt = said(axis.get_title(loc="left"), used, *(f"{kind} {shape}" for kind, shape, _ in rows))
    return figure


def _boxes_of_the_u(net: nn.Module) -> tuple[list[tuple[int, str, int]], list[tuple[int, int, int, int]]]:
    """The boxes, (level, text, parameters); and the way through each level, down and then up again:
    (level, its first box, the first and the last that its loops run through)."""
    last = len(net.down) - 1
    boxes, spans = [(0, "stem", count_parameters(net.stem))], []
    sides = [(level, net.enter_down, net.down) for level in range(last + 1)]
    sides += [(level, net.enter_up, net.up) for level in reversed(range(last))]
    for level, enter, blocks in sides:
        entrance = len(boxes)
        if count_parameters(enter[level]):
            boxes.append((level, "1×1", count_parameters(enter[level])))
        first = len(boxes)
        boxes += [(level, f"block {net.widths[level]}", count_parameters(block)) for block in blocks[level]]
        if level == last:
            boxes.append((level, "attention", count_parameters(net.attention)))
        spans.append((level, entrance, first, len(boxes) - 1))
    boxes.append((0, "head", count_parameters(net.norm) + count_parameters(net.head)))
    return boxes, spans


@in_our_look
def unet_diagram(net: nn.Module, size: int = 32) -> Picture:
    """The U: a box a block, at its resolution, with its parameters; drawn from the net itself.

    An arc back to a box's own start: the block is used that many times in a row. Dashed: what skips the levels below.
    """
    (boxes, spans), (figure, axes) = _boxes_of_the_u(net), empty(size=(9, 4.2))
    axis, step, drop, last = axes[0][0], 0.95, 1.75, len(net.down) - 1
    for i, (level, text, parameters) in enumerate(boxes):
        colour = COLOURS.get(text.split()[0], "white")
        _box(axis, i * step, -drop * level, 0.5, 1.1, text, colour, f"{parameters:,}")
        if i:
            _arrow(axis, ((i - 1) * step + 0.5, -drop * boxes[i - 1][0]), (i * step, -drop * level))
    for (level, *_, end), (_, entrance, *_) in zip(spans[:last], spans[:last:-1], strict=True):
        y = -drop * level + 0.3
        bent = {"connectionstyle": "arc3,rad=-0.12", "linestyle": "dashed"}
        _arrow(axis, (end * step + 0.5, y), (entrance * step, y), **bent)
    for level, _, begin, end in spans:
        if net.loops[level] > 1:
            y = -drop * level + 0.55
            _arrow(axis, (end * step + 0.4, y), (begin * step + 0.1, y), connectionstyle="arc3,rad=0.9")
            above = y + 0.14 + 0.47 * ((end - begin) * step + 0.3)
            axis.text((begin + end) / 2 * step + 0.25, above, f"{net.loops[level]} times", ha="center", fontsize=7)
    for level in range(last + 1):
        axis.text(-0.25, -drop * level, f"{size >> level}×{size >> level}", ha="right", va="center", fontsize=8)
    rest = count_parameters(net) - sum(parameters for *_, parameters in boxes)
    _box(axis, 0, -drop * last - 0.3, 1.9, 0.8, "noise level and class:\nscale and shift", "#d9ecd0", f"{rest:,}")
    axis.text(2.0, -drop * last - 0.3, "to every block", fontsize=7, va="center", color="#555555")
    axis.set(xlim=(-1, len(boxes) * step), ylim=(-drop * len(net.down) + 0.4, 1.7))
    axis.axis("off")
    axis.set_title(f"{count_parameters(net):,} parameters")
    figure.alt = said(
        "A U-Net", axis.get_title(loc="left"), *(f"{size >> level}×{size >> level}: {text}" for level, text, _ in boxes)
    )
    return figure


def from_noise_to_image(
    start: Tensor, way: list[tuple[Tensor, Tensor]], sigmas: Tensor, names: list[str], stages: int = 10
) -> Picture:
    """K samples, two rows each: what a step begins with, at unit variance; the clean image that it is taken for.

    start: the noise at sigmas[0], float (K, 3, H, W).
    way: what a solver yields, (x, estimate) of each step.
    sigmas: the noise levels, float (steps + 1,).
    names: K.
    stages: columns at most, from 1.
    """
    states, estimates = zip(*way, strict=True)
    before = [start, *states]
    shown = torch.linspace(0, len(way) - 1, min(stages, len(way))).round().long().tolist()
    noisy = torch.stack([before[i] / (1 + float(sigmas[i]) ** 2) ** 0.5 for i in shown], dim=1)
    pages = torch.stack([noisy, torch.stack([estimates[i] for i in shown], dim=1)], dim=1)  # (K, which, stage, …)
    rows, levels = [], [f"σ = {float(sigmas[i]):.2g}" for i in shown]
    for name in names:
        rows += [name, "estimate"]
    return image_grid(to_uint8(pages.flatten(0, 2).cpu()), len(shown), row_titles=rows, column_titles=levels)
