"""Interactive controls for the notebooks, each a thin skin over a plain function; a cell displays what they return."""

from collections.abc import Callable
from functools import lru_cache

import ipywidgets as w
import torch

from helpers import diagrams, figures, plots
from helpers.batches import generator
from helpers.classifiers import DigitSumClassifier
from helpers.diffusion import Denoiser, karras_sigmas, sample, starting_noise
from helpers.interpolation import between


def _class_picker(classes: list[str], start: str, description: str) -> w.Dropdown:
    if start not in classes:
        raise ValueError(f"{start!r} is not among the {len(classes)} classes")
    options = sorted((name, label) for label, name in enumerate(classes))
    return w.Dropdown(options=options, value=classes.index(start), description=description)


def _seed_box(value: int, description: str = "seed") -> w.BoundedIntText:
    return w.BoundedIntText(value=value, min=0, max=9999, description=description)


def _guidance_slider(value: float) -> w.FloatSlider:
    ends = {"min": min(1, value), "max": max(6, value), "step": 0.25}
    return w.FloatSlider(value=value, description="guidance", continuous_update=False, **ends)


class _Explorer(w.VBox):
    """Controls, a line of text, said(**values), and a picture, draw(**values) -> PNG, kept once it is drawn.

    rows: what to show above the line; controls: name -> control. An error is said in the line; the next change of a
    control tries again.
    """

    def __init__(self, rows: list, controls: dict, draw: Callable, said: Callable, width: int):
        self.controls, self.said = controls, said
        self.draw = lru_cache(maxsize=512)(draw)
        self.line, self.picture, self.waiting = w.Label(), w.Image(format="png", width=width), False
        for control in controls.values():
            control.observe(self.follow, names="value")
        self.show()
        super().__init__([*rows, self.line, self.picture])

    def show(self) -> None:
        values = {name: control.value for name, control in self.controls.items()}
        self.line.value = "computing …"
        self.picture.value = self.draw(**values)
        self.line.value = self.said(**values)

    def follow(self, _=None) -> None:
        try:
            if not self.waiting:
                self.show()
        except Exception as error:  # in a callback nobody would see it
            self.picture.value = b""
            self.line.value = f"{type(error).__name__}: {error}"

    def choose(self, **values) -> None:
        """Change several controls, and draw once."""
        self.waiting = True
        try:
            for name, value in values.items():
                self.controls[name].value = value
        finally:
            self.waiting = False
        self.follow()


def walk_explorer(
    denoiser: Denoiser,
    classes: list[str],
    *,
    start: tuple[str, str],
    guidance: float,
    interval: tuple[float, float],
    frames: int = 9,
    steps: int = 10,
) -> w.Widget:
    """Move between two samples: two classes, two seeds, a guidance scale, and the position on the way.

    denoiser: a trained one.
    classes: names in label order.
    start: the two classes shown first.
    guidance: the scale shown first, from 0.
    interval: the noise levels at which guidance acts, (low, high).
    frames: positions on the way, from 2; each is one `interpolation.between`, kept once it is sampled.
    steps: of the solver, for each frame.
    Raises ValueError for a class that is not there, and for fewer frames.
    """
    if frames < 2:
        raise ValueError(f"a way has two frames or more, got {frames}")

    def draw(a: int, b: int, seed_a: int, seed_b: int, guidance: float, position: float) -> bytes:
        noises = starting_noise(1, seed_a), starting_noise(1, seed_b)
        labels = torch.tensor([a]), torch.tensor([b])
        options = {"sigmas": karras_sigmas(steps), "guidance": guidance, "interval": interval}
        image = between(denoiser, labels, noises, torch.tensor([position]), **options)
        return figures.png(plots.image_grid(image[:, 0], 1, inch=2.4))

    def said(a: int, b: int, position: float, **_) -> str:
        return f"{1 - position:.0%} {classes[a]}, {position:.0%} {classes[b]}"

    places = [round(i / (frames - 1), 3) for i in range(frames)]
    controls = {
        "a": _class_picker(classes, start[0], "from"),
        "seed_a": _seed_box(0),
        "b": _class_picker(classes, start[1], "to"),
        "seed_b": _seed_box(1),
        "guidance": _guidance_slider(guidance),
        "position": w.SelectionSlider(options=places, value=0.0, description="position"),
    }
    play = w.Play(min=0, max=frames - 1, interval=700, description="play")
    w.link((play, "value"), (controls["position"], "index"))
    a, seed_a, b, seed_b, scale, position = controls.values()
    rows = [w.HBox([a, seed_a]), w.HBox([b, seed_b]), scale, w.HBox([position, play])]
    return _Explorer(rows, controls, draw, said, width=260)


def sample_explorer(
    denoiser: Denoiser,
    classes: list[str],
    *,
    start: str,
    guidance: float,
    interval: tuple[float, float],
    count: int = 4,
) -> w.Widget:
    """`count` samples of a class: choose the class, the seed, the guidance scale, and the number of solver steps.

    denoiser, classes, guidance, interval: as in `walk_explorer`.
    start: the class shown first.
    count: samples, from 1.
    Raises ValueError for a class that is not there.
    """

    def draw(label: int, seed: int, guidance: float, steps: int) -> bytes:
        labels = torch.full((count,), label)
        images = sample(denoiser, labels, seed=seed, sigmas=karras_sigmas(steps), guidance=guidance, interval=interval)
        return figures.png(plots.image_grid(images, count, inch=1.5))

    def said(label: int, steps: int, **_) -> str:
        return f"{count} of class {classes[label]}; {steps} steps of the solver each"

    controls = {
        "label": _class_picker(classes, start, "class"),
        "seed": _seed_box(0),
        "guidance": _guidance_slider(guidance),
        "steps": w.IntSlider(value=10, min=2, max=40, description="steps", continuous_update=False),
    }
    return _Explorer([*controls.values()], controls, draw, said, width=160 * count)


def digit_explorer(net: DigitSumClassifier, images: torch.Tensor, labels: torch.Tensor) -> w.Widget:
    """Choose three digits, or have them shuffled; see what the net reads in each and how it adds them up.

    net: a trained one; images uint8 (N, 28, 28) and labels (N,) in 0…9, every digit among them, from
    `data.digits`.
    """

    def draw(handwriting: int, **digits: int) -> bytes:
        chosen = []
        for channel, digit in enumerate(digits.values()):
            rows = (labels == digit).nonzero()[:, 0]
            chosen.append(int(rows[torch.randint(len(rows), (1,), generator=generator(handwriting, channel))]))
        return figures.png(diagrams.digit_sum(net, images[chosen], tuple(digits.values())))

    def said(handwriting: int, **digits: int) -> str:
        return f"{' + '.join(map(str, digits.values()))}, handwriting {handwriting}"

    start = {"red": 3, "green": 5, "blue": 8}
    pickers = {name: w.Dropdown(options=range(10), value=digit, description=name) for name, digit in start.items()}
    handwriting, button = _seed_box(0, "handwriting"), w.Button(description="shuffle")
    rng = torch.Generator().manual_seed(0)
    rows = [w.HBox([*pickers.values()]), w.HBox([handwriting, button])]
    explorer = _Explorer(rows, {"handwriting": handwriting, **pickers}, draw, said, width=720)

    def shuffle(_) -> None:
        digits = torch.randint(10, (3,), generator=rng).tolist()
        explorer.choose(handwriting=handwriting.value + 1, **dict(zip(start, digits, strict=True)))

    button.on_click(shuffle)
    return explorer
