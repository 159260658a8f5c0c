"""What happens to data on its way into a step: which images it is, and bytes to floats and back."""

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

MEAN, STD = 0.1307, 0.3081  # MNIST's, with which the official AddNIST files are normalised


def generator(seed: int, index: int) -> torch.Generator:
    """Random numbers that are a function of (seed, index) alone, the same on every device: they are the CPU's."""
    return torch.Generator().manual_seed((operator.index(seed) * 1_000_003 + operator.index(index)) % 2**63)


def seed_step(seed: int, step: int) -> None:
    """Make every random number that follows (noise, flips, dropout, …) a function of (seed, step)."""
    torch.manual_seed(generator(seed, step).initial_seed())


@contextmanager
def seeded(seed: int, step: int) -> Iterator[None]:
    """`seed_step` for what is inside; afterwards torch's global generators go on as if nothing had been."""
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        seed_step(seed, step)
        yield


@lru_cache(maxsize=4)  # there once an epoch, so that no step waits for a copy to the device
def _epoch_order(count: int, seed: int, epoch: int, device: torch.device) -> Tensor:
    return torch.randperm(count, generator=generator(seed, epoch)).to(device)


def batch(images: Tensor, labels: Tensor, batch_size: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """The batch of a step: a function of (seed, step) alone, so a resumed run sees what it would have seen.

    images: (N, …), on any device.
    labels: (N,), on the same.
    batch_size: in 1…N; the last N mod batch_size of an epoch's order are left out.
    seed: of the orders, one for each epoch, which visits every example at most once.
    step: from 0.
    Returns (batch_size, …) and (batch_size,). Raises ValueError.
    """
    count = len(images)
    if len(labels) != count or step < 0:
        raise ValueError(f"expected a label for each of {count} images and a step from 0, got {len(labels)} and {step}")
    if not 1 <= batch_size <= count:
        raise ValueError(f"batch size must be in 1…{count}, got {batch_size}")
    epoch, position = divmod(step, count // batch_size)
    index = _epoch_order(count, seed, epoch, images.device)[position * batch_size : (position + 1) * batch_size]
    return images[index], labels[index]


def to_float(images: Tensor) -> Tensor:
    """uint8 images in 0…255 -> float32 in [-1, 1]. Raises TypeError: floats in 0…1 would silently train nonsense."""
    if images.dtype != torch.uint8:
        raise TypeError(f"expected uint8 images in 0…255, got {images.dtype}: pass what `data.cifar100` returns")
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """float images -> uint8, clipped to [-1, 1]. Raises TypeError for other types, ValueError for NaN."""
    if not x.is_floating_point():
        raise TypeError(f"expected float images in -1…1, got {x.dtype}")
    if x.isnan().any():
        raise ValueError("the images hold NaN: the weights or the noise they come from are not finite")
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def normalise(images: Tensor) -> Tensor:
    """uint8 AddNIST images (B, 3, 28, 28) -> float32, normalised like the official files. Raises TypeError."""
    if images.dtype != torch.uint8:
        raise TypeError(f"expected uint8 images in 0…255, got {images.dtype}: pass what `data.addnist` returns")
    return (images.float() / 255 - MEAN) / STD
