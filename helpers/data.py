"""Data sets as uint8 tensors: AddNIST, CIFAR-100, and a demo set of each drawn by code; the batch of a given step."""

from __future__ import annotations

import colorsys
import hashlib
import io
import itertools
import math
import os
import pickle
import socket
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

PATIENCE = 60.0  # seconds a host may stay silent during a download
MEAN, STD = 0.1307, 0.3081  # MNIST's, with which the official AddNIST files are normalised

ADDNIST_URL = "https://data.ncl.ac.uk/ndownloader/articles/24574354/versions/1"
ADDNIST_SHA256 = {
    "train_x": "90fe9fd55c0b8639e9ff4bac2e745ccfedeab07d9a2a058e0ec8b2dacd6f0b0c",
    "valid_x": "46a42261e6c4a0f7b137b1e143383b2b6e7840b5e36c573ad30f4d7797b1f80f",
    "test_x": "c6d8ee91c5c1fcccb0f7ed7ab91e14c02095bf14d85f0acb9e493777bb872ef1",
    "train_y": "7e04aebb9299f3db58487433fc033fdd73b555f8c3b41ae1f951f37753c47dc8",
    "valid_y": "51066b7a3643593bcb13acdc54eadc27e1768ccc4ea6a6af0d4bf4d49ed6b6c6",
    "test_y": "3515838c2ecd948a76dc56ce471e46cbdb7f7ada58d7f41b660135e416a537bf",
}

SHAPES = ("disc", "ring", "square", "frame", "triangle", "diamond", "star", "cross", "bar", "hexagon")
COLOURS = ("red", "orange", "yellow", "lime", "green", "teal", "blue", "violet", "pink", "white")
DEMO_CLASSES = [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS]


class DataError(RuntimeError):
    """A data set cannot be had; the message says what to do."""


# --- batches ----------------------------------------------------------------------------------------------------


def seed_step(seed: int, step: int) -> None:
    """Make every random number that follows (noise, flips, dropout, …) a function of (seed, step)."""
    torch.manual_seed(seed * 1_000_003 + step)


@lru_cache(maxsize=4)
def _epoch_order(count: int, seed: int, epoch: int, device: torch.device) -> Tensor:
    """An order of 0…count - 1, the same on every device; there once an epoch, so that no step waits for a copy."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).to(device)


def batch(images: Tensor, labels: Tensor, size: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """The batch of a step: a function of (seed, step) alone, so a resumed run sees what it would have seen.

    images (N, …), labels (N,), on any device; size in 1…N. Each epoch visits every example at most once, in a new
    order; the last N mod size of an order are left out. Returns (size, …) and (size,).
    """
    count = len(images)
    if not 1 <= size <= count:
        raise ValueError(f"batch size must be in 1…{count}, got {size}")
    epoch, position = divmod(step, count // size)
    index = _epoch_order(count, seed, epoch, images.device)[position * size : (position + 1) * size]
    return images[index], labels[index]


def normalise(images: Tensor) -> Tensor:
    """uint8 AddNIST images (B, 3, 28, 28) -> float32, normalised like the official files. Raises TypeError."""
    if images.dtype != torch.uint8:
        raise TypeError(f"expected uint8 images in 0…255, got {images.dtype}: pass what `addnist` returns")
    return (images.float() / 255 - MEAN) / STD


def shuffle_channels(images: Tensor) -> Tensor:
    """Each image (B, 3, H, W) with its channels in a random order: another AddNIST image of the same label.

    Random numbers come from torch's global generator.
    """
    order = torch.rand(len(images), 3, device=images.device).argsort(dim=1)
    return images.gather(1, order[:, :, None, None].expand_as(images))


def jitter(
    images: Tensor, *, degrees: float = 0.0, scale: float = 0.0, shift: float = 0.0, bend: float = 0.0
) -> Tensor:
    """Each channel of each image turned, scaled, moved and bent at random: float (B, C, H, W) -> same, on its device.

    Uniform in ±degrees, 1 ± scale (each axis its own) and ±shift pixels. bend: the elastic deformation of Simard et
    al. (2003), here a displacement of that many pixels (standard deviation) at 5 × 5 points, smooth in between. What
    comes in from outside is the images' least value, the background. Bicubic, so that strokes stay as sharp as they
    are in images that nobody moved. Random numbers come from torch's global generator.
    """
    b, c, h, w = images.shape
    angle, size_x, size_y, x, y = (torch.rand(5, b * c, device=images.device) * 2 - 1).unbind()
    cos, sin = (angle * math.radians(degrees)).cos(), (angle * math.radians(degrees)).sin()
    size_x, size_y = 1 + scale * size_x, 1 + scale * size_y
    rows = [cos * size_x, -sin * size_y, 2 * shift / w * x, sin * size_x, cos * size_y, 2 * shift / h * y]
    theta = torch.stack(rows, dim=1).view(b * c, 2, 3)
    grid = F.affine_grid(theta, [b * c, 1, h, w], align_corners=False)
    points = torch.randn(b * c, 2, 5, 5, device=images.device) * (2 * bend / w)
    grid = grid + F.interpolate(points, size=(h, w), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    darkest, brightest = images.aminmax()
    moved = F.grid_sample((images - darkest).view(b * c, 1, h, w), grid, mode="bicubic", align_corners=False)
    return (moved.view(b, c, h, w) + darkest).clamp(darkest, brightest)  # bicubic overshoots at edges


def fingerprint(images: Tensor, labels: Tensor) -> str:
    """SHA-256 of a data set's bytes, first 16 digits: says in a result card which samples a result used."""
    digest = hashlib.sha256(images.cpu().numpy().tobytes())
    digest.update(labels.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


# --- AddNIST ----------------------------------------------------------------------------------------------------


def addnist(root: str | Path, split: str, source: str = "official") -> tuple[Tensor, Tensor]:
    """AddNIST (Geada et al. 2024): three digits, one per colour channel; label = their sum - 1.

    split: "train" (45,000), "valid" (15,000) or "test" (10,000). source: "official" takes root/AddNIST/*.npy,
    downloaded on first use and verified; "rebuilt" draws the same distribution from MNIST with a fixed seed (other
    samples than the official ones); "demo" does so from typeset digits, smaller and without any download.
    Returns uint8 images (N, 3, 28, 28) and int64 labels (N,) in 0…19. Raises DataError.
    """
    if split not in ("train", "valid", "test"):
        raise ValueError(f"split must be 'train', 'valid' or 'test', got {split!r}")
    if source == "official":
        return _addnist_official(Path(root) / "AddNIST", split)
    pools = [digits(root, part, source) for part in ("train", "test")]
    return _addnist_from_digits(*pools, split, per_class=(600, 100) if source == "demo" else (3000, 500))


def digits(root: str | Path, split: str, source: str = "official") -> tuple[Tensor, Tensor]:
    """The single digits that AddNIST adds up, with labels of their own: MNIST; or, source "demo", printed digits.

    split: "train" (60,000; demo 2,000) or "test" (10,000; demo 500); source as in `addnist`. MNIST comes through
    torchvision, downloaded on first use. Returns uint8 images (N, 28, 28) and int64 labels (N,). Raises DataError.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if source == "demo":
        return _typeset_digits(split == "train")
    if source not in ("official", "rebuilt"):
        raise ValueError(f"source must be 'official', 'rebuilt' or 'demo', got {source!r}")
    from torchvision.datasets import MNIST

    with _clear_errors("MNIST", "put its four files into DATA_ROOT/MNIST/raw, or set DATA = 'demo'"):
        mnist = MNIST(str(root), train=split == "train", download=True)
    return mnist.data, mnist.targets


def _addnist_official(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    files = {name: folder / f"{name}.npy" for name in ADDNIST_SHA256}
    if not all(path.exists() for path in files.values()):
        archive = folder / "addnist.zip"
        if not archive.exists():
            download(ADDNIST_URL, archive, hint="set DATA = 'rebuilt', which draws the same distribution from MNIST")
        _unpack_addnist(archive, files)
    x, y = (_read_npy(files[f"{split}_{part}"].read_bytes(), f"{split}_{part}") for part in "xy")
    images = torch.from_numpy(np.rint((x * STD + MEAN).clip(0, 1) * 255).astype(np.uint8))
    return images, torch.from_numpy(y.astype(np.int64))


def _unpack_addnist(archive: Path, files: dict[str, Path]) -> None:
    """Take the six arrays out of the zip by name, verify each, and write them where `files` says, nowhere else."""
    try:
        with zipfile.ZipFile(archive) as bundle:
            members = {Path(name).name: name for name in bundle.namelist()}
            for name, path in files.items():
                data = bundle.read(members[f"{name}.npy"])
                _read_npy(data, name)
                write_atomically(path, data)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        archive.unlink()
        raise DataError("the AddNIST zip is damaged and was deleted: run this again to download it anew.") from error
    except OSError as error:
        raise DataError(f"could not write {path.name} ({error.strerror}): free some space and run again.") from error
    archive.unlink()


def _read_npy(data: bytes, name: str) -> np.ndarray:
    if hashlib.sha256(data).hexdigest() != ADDNIST_SHA256[name]:
        raise DataError(
            f"{name}.npy is not the official file (its SHA-256 differs): delete the AddNIST folder to download it "
            "again, or set DATA = 'rebuilt'."
        )
    return np.load(io.BytesIO(data), allow_pickle=False)


def _addnist_from_digits(train_pool: tuple, test_pool: tuple, split: str, per_class: tuple[int, int], seed: int = 0):
    """AddNIST's own recipe over any digits; pools are (uint8 images (N, 28, 28), labels (N,)).

    Every triple of a class is drawn equally often, then exactly per_class = (train and valid, test) examples of each
    class are taken with replacement, shuffled, and the first part split 3 : 1 into train and valid. So many valid
    examples also occur in train, as in the official files.
    """
    rng = np.random.default_rng(seed)
    triples = np.array([t for t in itertools.product(range(10), repeat=3) if 1 <= sum(t) <= 20])
    classes = triples.sum(axis=1) - 1
    split_pools = []
    for (pool_images, pool_labels), keep, test in ((train_pool, per_class[0], False), (test_pool, per_class[1], True)):
        by_digit = [np.flatnonzero(pool_labels.numpy() == digit) for digit in range(10)]
        images, labels = [], []
        for label in range(20):
            members = triples[classes == label]
            held = int(0.75 * len(members))
            drawn = members.repeat(max(keep // (len(members) - held if test else held), 1), axis=0)  # (n, 3)
            rows = np.stack([_pick(rng, by_digit, drawn[:, channel]) for channel in range(3)], axis=1)
            chosen = rows[rng.integers(len(rows), size=keep)]  # with replacement: some examples come twice
            images.append(pool_images.numpy()[chosen])  # (keep, 3, 28, 28)
            labels.append(np.full(keep, label))
        order = rng.permutation(20 * keep)
        split_pools.append((np.concatenate(images)[order], np.concatenate(labels)[order]))
    (images, labels), held_out = split_pools
    if split == "test":
        images, labels = held_out
    else:
        cut = len(images) * 3 // 4
        part = slice(0, cut) if split == "train" else slice(cut, None)
        images, labels = images[part], labels[part]
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))


def _pick(rng: np.random.Generator, by_digit: list[np.ndarray], digits: np.ndarray) -> np.ndarray:
    """For each digit the index of a random image of it."""
    sizes = np.array([len(rows) for rows in by_digit])
    position = (rng.random(len(digits)) * sizes[digits]).astype(np.int64)
    table = np.zeros((10, sizes.max()), dtype=np.int64)
    for digit, rows in enumerate(by_digit):
        table[digit, : len(rows)] = rows
    return table[digits, position]


# --- CIFAR-100 --------------------------------------------------------------------------------------------------


def cifar100(root: str | Path, split: str, source: str = "official") -> tuple[Tensor, Tensor]:
    """CIFAR-100 (Krizhevsky 2009) through torchvision, downloaded on first use; or, source "demo", drawn shapes.

    source "rebuilt" concerns AddNIST alone and means "official" here, so that one setting serves every notebook.
    split: "train" (50,000; demo 5,000) or "test" (10,000; demo 1,000). Returns uint8 images (N, 3, 32, 32) and
    int64 labels (N,) in 0…99. Raises DataError.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if source == "demo":
        return _drawn_shapes(50 if split == "train" else 10, seed=int(split == "test"))
    if source not in ("official", "rebuilt"):
        raise ValueError(f"source must be 'official', 'rebuilt' or 'demo', got {source!r}")
    from torchvision.datasets import CIFAR100

    with _clear_errors("CIFAR-100", "put cifar-100-python/ into DATA_ROOT, or set DATA = 'demo'"):
        cifar = CIFAR100(str(root), train=split == "train", download=True)
    return torch.from_numpy(cifar.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(cifar.targets)


def cifar100_classes(root: str | Path, source: str = "official") -> list[str]:
    """The 100 class names in label order; of a demo, "red disc" to "white hexagon"."""
    if source == "demo":
        return DEMO_CLASSES
    from torchvision.datasets import CIFAR100

    return CIFAR100(str(root), train=False).classes


def cifar100_superclasses(root: str | Path, source: str = "official") -> list[str]:
    """The superclass of each of the 100 classes, in label order: 20 names, each five times; of a demo, 10 shapes."""
    if source == "demo":
        return [name.split()[1] for name in DEMO_CLASSES]
    from torchvision.datasets import CIFAR100

    folder = Path(root) / CIFAR100(str(root), train=False).base_folder  # its constructor verifies the files
    test, meta = (pickle.loads((folder / name).read_bytes(), encoding="latin1") for name in ("test", "meta"))
    coarse = dict(zip(test["fine_labels"], test["coarse_labels"], strict=True))
    return [meta["coarse_label_names"][coarse[label]] for label in range(100)]


# --- the demo sets ----------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def _typeset_digits(train: bool) -> tuple[Tensor, Tensor]:
    """Printed digits in place of MNIST's: uint8 (N, 28, 28) and labels (N,); sizes, angles and places vary."""
    rng = np.random.default_rng(0 if train else 1)
    labels = np.arange(10).repeat(200 if train else 50)
    images = np.empty((len(labels), 28, 28), dtype=np.uint8)
    for row, digit in enumerate(labels):
        font = ImageFont.load_default(size=float(rng.uniform(18, 26)))
        image = Image.new("L", (28, 28))
        centre = tuple(14 + rng.uniform(-2, 2, size=2))
        ImageDraw.Draw(image).text(centre, str(digit), fill=255, font=font, anchor="mm")
        images[row] = np.asarray(image.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR))
    return torch.from_numpy(images), torch.from_numpy(labels)


def _drawn_shapes(per_class: int, seed: int) -> tuple[Tensor, Tensor]:
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
    ground = tuple(int(c) for c in rng.uniform(10, 70, size=3))
    image = Image.new("RGB", (96, 96), ground)
    draw = ImageDraw.Draw(image)
    cx, cy, r, turn = *rng.uniform(40, 56, size=2), rng.uniform(24, 34), rng.uniform(-0.25, 0.25)

    def polygon(radii: list[float], corners: int) -> None:
        angles = turn - math.pi / 2 + 2 * math.pi * np.arange(corners) / corners
        scale = r * np.resize(radii, corners)
        draw.polygon(list(zip(cx + scale * np.cos(angles), cy + scale * np.sin(angles), strict=True)), fill=fill)

    box = (cx - r, cy - r, cx + r, cy + r)
    if shape == "disc":
        draw.ellipse(box, fill=fill)
    elif shape == "ring":
        draw.ellipse(box, outline=fill, width=9)
    elif shape == "frame":
        draw.rectangle(box, outline=fill, width=9)
    elif shape == "square":
        draw.rectangle(box, fill=fill)
    elif shape == "bar":
        draw.rectangle((cx - r, cy - r / 3, cx + r, cy + r / 3), fill=fill)
    elif shape == "cross":
        draw.rectangle((cx - r, cy - r / 4, cx + r, cy + r / 4), fill=fill)
        draw.rectangle((cx - r / 4, cy - r, cx + r / 4, cy + r), fill=fill)
    elif shape == "star":
        polygon([1.1, 0.45], 10)
    else:
        polygon([1.15], {"triangle": 3, "diamond": 4, "hexagon": 6}[shape])
    return np.asarray(image.resize((32, 32), Image.Resampling.BOX))


# --- files ------------------------------------------------------------------------------------------------------


@contextmanager
def _clear_errors(name: str, hint: str) -> Iterator[None]:
    """Turn what goes wrong while a library loads a data set into one DataError with advice; a silent host, too."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise DataError(
            f"{name} could not be loaded ({error}). Check the connection and the free space and run this again; "
            f"or {hint}."
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def download(url: str, path: Path, *, hint: str, sha256: str | None = None) -> None:
    """Fetch a file with a progress bar; verified, and in its place only when whole. Raises DataError."""
    with _clear_errors(path.name, hint):
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256)


def write_atomically(path: Path, data: bytes) -> None:
    """All of `data` or nothing: write beside the target, flush to disk, rename. Raises OSError."""
    part = path.with_name(f"{path.name}.part")  # left behind by a killed process, the next one overwrites it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        with suppress(OSError):
            part.unlink()
