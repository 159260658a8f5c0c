"""The demo sets, drawn by code: printed digits in place of MNIST's, coloured shapes in place of CIFAR-100."""

import colorsys
import math
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SHAPES = ("disc", "ring", "square", "frame", "triangle", "diamond", "star", "cross", "bar", "hexagon")
COLOURS = ("red", "orange", "yellow", "lime", "green", "teal", "blue", "violet", "pink", "white")
CLASSES = [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS]


@lru_cache(maxsize=2)
def digits(seed: int) -> tuple[Tensor, Tensor]:
    """Printed digits in place of MNIST's: uint8 (N, 28, 28), labels (N,). seed: 0 (2,000 to train on) or 1 (500)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(10).repeat(50 if seed else 200)
    images = np.empty((len(labels), 28, 28), dtype=np.uint8)
    for row, digit in enumerate(labels):
        font = ImageFont.load_default(size=float(rng.uniform(18, 26)))
        image = Image.new("L", (28, 28))
        centre = tuple(14 + rng.uniform(-2, 2, size=2))
        ImageDraw.Draw(image).text(centre, str(digit), fill=255, font=font, anchor="mm")
        images[row] = np.asarray(image.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR))
    return torch.from_numpy(images), torch.from_numpy(labels)


def shapes(per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """10 shapes × 10 colours on shaded backgrounds: uint8 (100 · per_class, 3, 32, 32) and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(100).repeat(per_class))
    images = np.empty((len(labels), 32, 32, 3), dtype=np.uint8)
    for row, label in enumerate(labels):
        shape, colour = divmod(int(label), 10)
        images[row] = _draw_shape(SHAPES[shape], colour, rng)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)


def _draw_shape(shape: str, colour: int, rng: np.random.Generator) -> np.ndarray:
    hue, saturation = (colour / 9, 0.9) if colour < 9 else (0.0, 0.0)
    fill = tuple(int(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, rng.uniform(0.85, 1)))
    ground = tuple(int(c) for c in rng.uniform(10, 50, size=3))
    image = Image.new("RGB", (96, 96), ground)
    draw = ImageDraw.Draw(image)
    cx, cy, r = *rng.uniform(45, 51, size=2), rng.uniform(30, 36)

    def polygon(radii: list[float], corners: int) -> None:
        angles = -math.pi / 2 + 2 * math.pi * np.arange(corners) / corners
        scale = r * np.resize(radii, corners)
        draw.polygon(list(zip(cx + scale * np.cos(angles), cy + scale * np.sin(angles), strict=True)), fill=fill)

    box = (cx - r, cy - r, cx + r, cy + r)
    bar, post = (cx - r, cy - r / 4, cx + r, cy + r / 4), (cx - r / 4, cy - r, cx + r / 4, cy + r)
    {
        "disc": lambda: draw.ellipse(box, fill=fill),
        "ring": lambda: draw.ellipse(box, outline=fill, width=9),
        "frame": lambda: draw.rectangle(box, outline=fill, width=9),
        "square": lambda: draw.rectangle(box, fill=fill),
        "bar": lambda: draw.rectangle((cx - r, cy - r / 3, cx + r, cy + r / 3), fill=fill),
        "cross": lambda: [draw.rectangle(part, fill=fill) for part in (bar, post)],
        "star": lambda: polygon([1.1, 0.45], 10),
        "triangle": lambda: polygon([1.15], 3),
        "diamond": lambda: polygon([1.15], 4),
        "hexagon": lambda: polygon([1.15], 6),
    }[shape]()
    return np.asarray(image.resize((32, 32), Image.Resampling.BOX))
