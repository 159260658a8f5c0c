"""Ways from one image to another: slerp, the frames in between, the noise behind a real image, and smoothness."""

from collections import deque
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from helpers.batches import to_float
from helpers.diffusion import Denoiser, checked_labels, checked_sigmas, sample
from helpers.solvers import heun_steps


def slerp(a: Tensor, b: Tensor, t: float | Tensor) -> Tensor:
    """Spherical linear interpolation (Shoemake 1985), each sample along its own great circle.

    a, b: float tensors of one shape; the first axis counts samples, a 1-D tensor is a single vector. t: a number or
    one value a sample, 0 … 1; 0 gives a and 1 gives b, exactly. Vectors of one norm keep it. Parallel vectors and
    zero vectors are interpolated linearly. Computed in float64, returned in a's dtype. Raises ValueError for opposite
    vectors, between which there is no shortest arc.
    """
    t = _checked(a, b, t)
    # On the CPU: Apple's GPUs have no float64.
    if a.numel() == 0:
        return a.clone()
    u, v = (x.cpu().double().reshape(1 if a.ndim <= 1 else len(x), -1) for x in (a, b))
    t = t.cpu().double().expand(len(u))[:, None]  # (B, 1)
    norm_u, norm_v = u.norm(dim=1, keepdim=True), v.norm(dim=1, keepdim=True)
    scale = (norm_u * norm_v).clamp_min(torch.finfo(torch.float64).tiny)
    cosine = ((u * v).sum(dim=1, keepdim=True) / scale).clamp(-1, 1)
    if ((cosine < -1 + 1e-12) & (t > 0) & (t < 1)).any():
        raise ValueError("between opposite vectors there is no shortest arc: move one of them a little")
    angle = cosine.acos()
    sine = angle.sin().clamp_min(1e-12)
    arc = ((1 - t) * angle).sin() / sine * u + (t * angle).sin() / sine * v
    straight = (cosine > 1 - 1e-12) | (norm_u == 0) | (norm_v == 0)
    out = torch.where(straight, torch.lerp(u, v, t), arc)
    out = torch.where(t == 0, u, torch.where(t == 1, v, out))
    return out.reshape(a.shape).to(a.device, a.dtype)


def _checked(a: Tensor, b: Tensor, t: float | Tensor) -> Tensor:
    """t as a tensor () or (samples,); ValueError where a way has not two ends of one shape, or t another."""
    if a.shape != b.shape or not (a.is_floating_point() and b.is_floating_point()):
        got = f"{a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}"
        raise ValueError(f"expected two float tensors of one shape, got {got}")
    t = t if isinstance(t, Tensor) else torch.as_tensor(t, dtype=torch.float64)
    if t.ndim and t.shape != (1 if a.ndim <= 1 else len(a),):
        raise ValueError(f"expected a position, or one for each of {len(a)} samples, got {tuple(t.shape)}")
    return t


def _over_samples(t: Tensor, a: Tensor) -> Tensor:
    t = t.to(a.dtype).to(a.device)
    return t.view(-1, *[1] * (a.ndim - 1)) if t.ndim else t


def lerp(a: Tensor, b: Tensor, t: float | Tensor) -> Tensor:
    """Straight-line interpolation; arguments as in `slerp`. Between two independent noises it loses norm."""
    return torch.lerp(a, b, _over_samples(_checked(a, b, t), a))


def switch(a: Tensor, b: Tensor, t: float | Tensor) -> Tensor:
    """No interpolation at all: a up to the middle, b from there on; arguments as in `slerp`."""
    return torch.where(_over_samples(_checked(a, b, t), a) < 0.5, a, b)


@torch.no_grad()
def between(
    denoiser: Denoiser,
    labels: tuple[Tensor, Tensor],
    noises: tuple[Tensor, Tensor],
    positions: Tensor,
    *,
    way: Callable[[Tensor, Tensor, Tensor], Tensor] = slerp,
    class_way: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    seed: int = 0,
    fresh_noise: bool = False,
    **sampling,
) -> Tensor:
    """Frames on the way from one sample to another -> uint8 (F, P, 3, 32, 32).

    The noise moves along `way`, the class embedding along `class_way`. With a deterministic solver, neighbouring
    positions give neighbouring images, and positions 0 and 1 the two samples themselves.

    denoiser: a trained one.
    labels: two int64 (P,), the classes at the ends of P pairs; twice the same to move the noise alone.
    noises: two float (P, 3, 32, 32), the noises at the ends; twice the same to move the class alone.
    positions: float in 0…1, (F,) or, each pair its own, (F, P).
    way: `slerp`, `lerp` or `switch`.
    class_way: one of these, too; the same as way unless given.
    seed: of the noise that `solvers.ddpm_steps` adds.
    fresh_noise: whether that is another in each frame, or the same in all.
    sampling: further arguments of `diffusion.sample`.
    Raises ValueError on positions, labels or noises of another kind.
    """
    positions = torch.as_tensor(positions)
    if positions.ndim not in (1, 2) or len(positions) == 0 or positions.min() < 0 or positions.max() > 1:
        raise ValueError(f"positions must be (F,) or (F, P), in 0…1, got {tuple(positions.shape)}: {positions}")
    device = next(denoiser.parameters()).device
    ends = (checked_labels(denoiser, of).to(device) for of in labels)
    start, end = (denoiser.net.class_embedding(of).cpu() for of in ends)  # (P, E)
    if fresh_noise:  # each frame by a seed of its own
        options = {"way": way, "class_way": class_way, **sampling}
        own = [between(denoiser, labels, noises, t[None], seed=seed + i, **options) for i, t in enumerate(positions)]
        return torch.cat(own)
    embeddings = torch.cat([(class_way or way)(start, end, t) for t in positions])  # (F · P, E)
    noise, pairs = torch.cat([way(*noises, t) for t in positions]), len(start)
    rows = torch.arange(pairs).repeat(len(positions))
    return sample(denoiser, embeddings, noise=noise, seed=seed, rows=rows, **sampling).unflatten(0, (-1, pairs))


@torch.no_grad()
def invert(denoiser: Denoiser, images: Tensor, labels: Tensor, sigmas: Tensor | None = None) -> Tensor:
    """The noise behind an image: the deterministic solver run backwards (Song et al. 2021, section 5.3).

    images uint8 (B, 3, 32, 32); labels and sigmas as in `diffusion.sample`. Returns float32 (B, 3, 32, 32), close to
    N(0, I), on the CPU, without guidance: `diffusion.sample(denoiser, labels, noise=…, sigmas=…, solver=heun_steps)`
    draws the images again, up to the solver's error. Two evaluations a step. Raises ValueError and TypeError.
    """
    device = next(denoiser.parameters()).device
    upwards = checked_sigmas(sigmas)[:-1].flip(0)  # without 0: there x is the image
    if len(upwards) < 2:
        raise ValueError("expected two noise levels or more above 0")
    labels = checked_labels(denoiser, labels).to(device)
    steps = heun_steps(lambda x, sigma: denoiser(x, sigma, labels), to_float(images).to(device), upwards)
    return deque(steps, maxlen=1).pop()[0].cpu() / float(upwards[-1])


def step_lengths(points: Tensor) -> Tensor:
    """Distance between neighbouring frames: float (F, P, D), such as their FID features -> (F - 1, P)."""
    return points.diff(dim=0).norm(dim=2)


def unevenness(lengths: Tensor) -> Tensor:
    """Largest step over mean step of each path, (F - 1, P) -> (P,): 1 is perfectly even, F - 1 a single jump."""
    return lengths.amax(dim=0) / lengths.mean(dim=0).clamp_min(1e-12)


def smoothness(points: Tensor, every: tuple[int, ...] = (1,)) -> dict[str, dict | list]:
    """How smooth paths are, as means and standard deviations over them: float (F, P, D) -> for a result card.

    "length": by number of frames (all of them, or every second, …, as `every` says), the sum of `step_lengths`;
    "each": the length of each path with all frames, to compare ways pair by pair; "unevenness": the `unevenness` with
    as many frames as the first of `every` leaves.
    """
    steps = {len(points[::stride]): step_lengths(points[::stride]) for stride in every}
    lengths = {count: lengths.sum(dim=0) for count, lengths in steps.items()}
    uneven = unevenness(next(iter(steps.values())))
    return {
        "length": {count: [of.mean(), of.std()] for count, of in lengths.items()},
        "each": step_lengths(points).sum(dim=0),
        "unevenness": [uneven.mean(), uneven.std()],
    }


def retime(positions: Tensor, lengths: Tensor, count: int) -> Tensor:
    """Positions at which each path's steps come out equally long: (F,) or (F, P), (F - 1, P) -> float (count, P).

    positions: increasing, where the frames stood whose `step_lengths` are given; between them the length travelled is
    taken as linear. The ends stay where they are.
    """
    lengths = lengths.cpu().double().clamp_min(1e-12)
    travelled = torch.cat([torch.zeros_like(lengths[:1]), lengths.cumsum(dim=0)])  # (F, P)
    positions = positions.cpu().double().view(len(positions), -1).expand_as(travelled)
    columns = [
        np.interp(np.linspace(0, float(way[-1]), count), way.numpy(), place.numpy())
        for way, place in zip(travelled.T, positions.T, strict=True)
    ]
    return torch.from_numpy(np.stack(columns, axis=1)).float()


def psnr(images_a: Tensor, images_b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each pair of uint8 images (N, …) -> float (N,), at most 78."""
    if images_a.shape != images_b.shape or not images_a.dtype == images_b.dtype == torch.uint8:
        raise ValueError("expected two tensors of uint8 images, of one shape")
    error = (images_a.float() - images_b.float()).square().flatten(1).mean(dim=1).clamp_min(1e-3)
    return 10 * (255**2 / error).log10()
