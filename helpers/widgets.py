"""Interactive controls for the notebooks, each a thin skin over a plain function."""

from __future__ import annotations

from functools import lru_cache

import ipywidgets as w
import torch

from helpers import plots
from helpers.diffusion import Denoiser, karras_path, starting_noise
from helpers.interpolation import between


def walk_explorer(
    denoiser: Denoiser, classes: list[str], *, start: tuple[str, str], frames: int = 9, steps: int = 10
) -> w.Widget:
    """Move between two samples: two classes, two seeds, a guidance scale, and the position on the way.

    classes: names in label order; start: the two classes shown first. Each frame is one `interpolation.between`
    with `steps` Heun steps; frames already drawn are kept. Display the returned widget.
    """

    @lru_cache(maxsize=512)
    def frame(a: int, b: int, seed_a: int, seed_b: int, guidance: float, position: float) -> bytes:
        noises = starting_noise(1, seed_a), starting_noise(1, seed_b)
        labels = torch.tensor([a]), torch.tensor([b])
        image = between(denoiser, labels, noises, torch.tensor([position]), path=karras_path(steps), guidance=guidance)
        return plots.png(plots.image_grid(image[:, 0], 1, inch=2.4))

    options = sorted((name, label) for label, name in enumerate(classes))
    controls = {
        "a": w.Dropdown(options=options, value=classes.index(start[0]), description="from"),
        "seed_a": w.BoundedIntText(value=0, min=0, max=9999, description="seed"),
        "b": w.Dropdown(options=options, value=classes.index(start[1]), description="to"),
        "seed_b": w.BoundedIntText(value=1, min=0, max=9999, description="seed"),
        "guidance": w.FloatSlider(value=1.0, min=1, max=4, step=0.5, description="guidance", continuous_update=False),
        "position": w.SelectionSlider(
            options=[round(i / (frames - 1), 3) for i in range(frames)], value=0.0, description="position"
        ),
    }
    picture = w.Image(format="png", width=260)
    said = w.Label()

    def draw(_=None) -> None:
        said.value = f"computing ({2 * steps - 1} evaluations of the network) …"
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


def digit_explorer(net, images: torch.Tensor, labels: torch.Tensor) -> w.Widget:
    """Step through AddNIST images: the image with its channels, and the net's probabilities of the 20 labels.

    net: classifier in eval mode; images uint8 (N, 3, 28, 28), labels int64 (N,). Display the returned widget.
    """
    number = w.IntSlider(min=0, max=len(images) - 1, description="example", continuous_update=False)
    picture = w.Image(format="png", width=620)

    def draw(_=None) -> None:
        i = number.value
        picture.value = plots.png(plots.answer(net, images[i], int(labels[i])))

    number.observe(draw, names="value")
    draw()
    return w.VBox([number, picture])
