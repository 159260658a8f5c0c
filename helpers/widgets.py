"""Interactive controls for the notebooks, each a thin skin over a plain function."""

from __future__ import annotations

from functools import lru_cache

import ipywidgets as w
import torch

from helpers import diagrams, plots
from helpers.classifiers import DigitSumClassifier
from helpers.diffusion import Denoiser, karras_sigmas, sample, starting_noise
from helpers.interpolation import between


def _class_picker(classes: list[str], start: str, description: str) -> w.Dropdown:
    if start not in classes:
        raise ValueError(f"{start!r} is not among the {len(classes)} classes")
    options = sorted((name, label) for label, name in enumerate(classes))
    return w.Dropdown(options=options, value=classes.index(start), description=description)


def _seed_box(value: int) -> w.BoundedIntText:
    return w.BoundedIntText(value=value, min=0, max=9999, description="seed")


def _guidance_slider(value: float) -> w.FloatSlider:
    return w.FloatSlider(
        value=value, min=min(1, value), max=max(6, value), step=0.25, description="guidance", continuous_update=False
    )


def walk_explorer(
    denoiser: Denoiser, classes: list[str], *, start: tuple[str, str], guidance: float,
    interval: tuple[float, float], frames: int = 9, steps: int = 10,
) -> w.Widget:  # fmt: skip
    """Move between two samples: two classes, two seeds, a guidance scale, and the position on the way.

    classes: names in label order; start: the two classes shown first; guidance: the scale shown first;
    interval: the noise levels at which it acts. Each frame is one `interpolation.between` with `steps` solver steps;
    frames already drawn are kept. Display the returned widget.
    """

    @lru_cache(maxsize=512)
    def frame(a: int, b: int, seed_a: int, seed_b: int, guidance: float, position: float) -> bytes:
        noises = starting_noise(1, seed_a), starting_noise(1, seed_b)
        labels = torch.tensor([a]), torch.tensor([b])
        options = {"sigmas": karras_sigmas(steps), "guidance": guidance, "interval": interval}
        image = between(denoiser, labels, noises, torch.tensor([position]), **options)
        return plots.png(plots.image_grid(image[:, 0], 1, inch=2.4))

    controls = {
        "a": _class_picker(classes, start[0], "from"),
        "seed_a": _seed_box(0),
        "b": _class_picker(classes, start[1], "to"),
        "seed_b": _seed_box(1),
        "guidance": _guidance_slider(guidance),
        "position": w.SelectionSlider(
            options=[round(i / (frames - 1), 3) for i in range(frames)], value=0.0, description="position"
        ),
    }
    picture = w.Image(format="png", width=260)
    said = w.Label()

    def draw(_=None) -> None:
        said.value = f"computing ({steps} steps of the solver) …"
        picture.value = frame(**{name: control.value for name, control in controls.items()})
        share = controls["position"].value
        said.value = f"{1 - share:.0%} {classes[controls['a'].value]}, {share:.0%} {classes[controls['b'].value]}"

    for control in controls.values():
        control.observe(draw, names="value")
    play = w.Play(min=0, max=frames - 1, interval=700, description="play")

    def follow(change) -> None:
        controls["position"].index = change["new"]

    play.observe(follow, names="value")
    draw()
    rows = [w.HBox([controls["a"], controls["seed_a"]]), w.HBox([controls["b"], controls["seed_b"]])]
    rows += [controls["guidance"], w.HBox([controls["position"], play])]
    return w.VBox([*rows, said, picture])


def sample_explorer(
    denoiser: Denoiser, classes: list[str], *, start: str, guidance: float, interval: tuple[float, float],
    count: int = 4,
) -> w.Widget:  # fmt: skip
    """Draw `count` samples of a class: the class, the seed, the guidance scale, and the number of solver steps.

    classes: names in label order; start: the one shown first; guidance and interval as in `walk_explorer`. Drawings
    already made are kept. Display the returned widget.
    """

    @lru_cache(maxsize=256)
    def draw_samples(label: int, seed: int, guidance: float, steps: int) -> bytes:
        labels = torch.full((count,), label)
        images = sample(denoiser, labels, seed=seed, sigmas=karras_sigmas(steps), guidance=guidance, interval=interval)
        return plots.png(plots.image_grid(images, count, inch=1.5))

    controls = {
        "label": _class_picker(classes, start, "class"),
        "seed": _seed_box(0),
        "guidance": _guidance_slider(guidance),
        "steps": w.IntSlider(value=10, min=2, max=40, description="steps", continuous_update=False),
    }
    picture = w.Image(format="png", width=160 * count)
    said = w.Label()

    def draw(_=None) -> None:
        steps = controls["steps"].value
        said.value = "drawing …"
        picture.value = draw_samples(**{name: control.value for name, control in controls.items()})
        said.value = f"{count} of class {classes[controls['label'].value]}; {steps} steps of the solver each"

    for control in controls.values():
        control.observe(draw, names="value")
    draw()
    return w.VBox([*controls.values(), said, picture])


def digit_explorer(net: DigitSumClassifier, images: torch.Tensor, labels: torch.Tensor) -> w.Widget:
    """Choose three digits, or have them shuffled; see what the net reads in each and how it adds them up.

    net: is put into eval mode; images uint8 (N, 28, 28) and labels (N,) in 0…9, every digit among them, from
    `data.digits`. Display the returned widget.
    """
    net.eval()
    rng = torch.Generator().manual_seed(0)
    chosen = [0, 0, 0]  # the row of `images` in each channel
    pickers = [w.Dropdown(options=range(10), description=name) for name in ("red", "green", "blue")]
    buttons = [w.Button(description=text) for text in ("other handwriting", "shuffle")]
    picture = w.Image(format="png", width=720)

    def write(channel: int, digit: int) -> None:
        rows = (labels == digit).nonzero()[:, 0]
        chosen[channel] = int(rows[torch.randint(len(rows), (1,), generator=rng)])

    def draw() -> None:
        digits = tuple(int(labels[row]) for row in chosen)
        picture.value = plots.png(diagrams.digit_sum(net, images[chosen], digits))

    def pick(change) -> None:
        write(pickers.index(change["owner"]), change["new"])
        draw()

    def rewrite(_=None) -> None:
        for channel, picker in enumerate(pickers):
            write(channel, picker.value)
        draw()

    def shuffle(_=None) -> None:
        for picker in pickers:  # silently: one drawing at the end, not four
            picker.unobserve(pick, names="value")
            picker.value = int(torch.randint(10, (1,), generator=rng))
            picker.observe(pick, names="value")
        rewrite()

    for picker in pickers:
        picker.observe(pick, names="value")
    buttons[0].on_click(rewrite)
    buttons[1].on_click(shuffle)
    shuffle()
    return w.VBox([w.HBox(pickers), w.HBox(buttons), picture])
