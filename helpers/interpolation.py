"""Ways from one sample to another: slerp, the frames between two samples, and how smooth they are."""

from __future__ import annotations

import torch
from torch import Tensor

from helpers.diffusion import Denoiser, sample


def slerp(a: Tensor, b: Tensor, t: float | Tensor) -> Tensor:
    """Spherical linear interpolation (Shoemake 1985), each sample along its own great circle.

    a, b: float tensors of one shape; the first axis counts samples, a 1-D tensor is a single vector. t: a number or
    one value a sample, 0 … 1; 0 gives a and 1 gives b, exactly. Vectors of one norm keep it. Parallel vectors and
    zero vectors are interpolated linearly; antipodal ones turn about a fixed perpendicular axis. Computed in
    float64, returned in a's dtype.
    """
    if a.shape != b.shape:
        raise ValueError(f"slerp needs two tensors of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    samples = 1 if a.ndim <= 1 else len(a)
    u, v = a.double().reshape(samples, -1), b.double().reshape(samples, -1)
    t = torch.as_tensor(t, dtype=torch.float64, device=a.device).expand(samples)[:, None]  # (B, 1)
    norm_u, norm_v = u.norm(dim=1, keepdim=True), v.norm(dim=1, keepdim=True)
    scale = (norm_u * norm_v).clamp_min(torch.finfo(torch.float64).tiny)
    cosine = ((u * v).sum(dim=1, keepdim=True) / scale).clamp(-1, 1)
    angle = cosine.acos()
    sine = angle.sin().clamp_min(1e-12)
    arc = ((1 - t) * angle).sin() / sine * u + (t * angle).sin() / sine * v

    line = torch.lerp(u, v, t)
    norm = torch.lerp(norm_u, norm_v, t)
    half_turn = norm * ((torch.pi * t).cos() * u / norm_u.clamp_min(1e-300) + (torch.pi * t).sin() * _perpendicular(u))
    straight = (cosine > 1 - 1e-12) | (norm_u == 0) | (norm_v == 0)
    out = torch.where(straight, line, torch.where(cosine < -1 + 1e-12, half_turn, arc))
    out = torch.where(t == 0, u, torch.where(t == 1, v, out))
    return out.reshape(a.shape).to(a.dtype)


def _perpendicular(u: Tensor) -> Tensor:
    """A unit vector at a right angle to each row: the axis least aligned with it, less its projection."""
    axis = torch.zeros_like(u).scatter_(1, u.abs().argmin(dim=1, keepdim=True), 1.0)
    along = (axis * u).sum(dim=1, keepdim=True) / u.square().sum(dim=1, keepdim=True).clamp_min(1e-300)
    rest = axis - along * u
    return rest / rest.norm(dim=1, keepdim=True).clamp_min(1e-300)


@torch.no_grad()
def between(
    denoiser: Denoiser,
    labels: tuple[Tensor, Tensor],
    noises: tuple[Tensor, Tensor],
    positions: Tensor,
    **sampling,
) -> Tensor:
    """Frames on the way from one sample to another: noise and class embedding both move by slerp.

    labels: two int64 (P,), noises: two float (P, 3, 32, 32), for P pairs; positions float (F,) in 0 … 1; further
    arguments go to `diffusion.sample`. With its deterministic solver, neighbouring positions give neighbouring
    images, and positions 0 and 1 the two samples themselves. Returns uint8 (F, P, 3, 32, 32).
    """
    device = next(denoiser.parameters()).device
    start, end = (denoiser.net.class_embedding(label.to(device)).cpu() for label in labels)  # (P, E) each
    pairs = len(start)
    embeddings = torch.cat([slerp(start, end, float(t)) for t in positions])  # (F·P, E)
    noise = torch.cat([slerp(*noises, float(t)) for t in positions])  # (F·P, 3, 32, 32)
    images = sample(denoiser, embeddings, noise=noise, **sampling)
    return images.view(len(positions), pairs, *images.shape[1:])


def step_lengths(frames: Tensor) -> Tensor:
    """Distance between neighbouring frames, uint8 (F, P, 3, H, W) -> float (F - 1, P): RMS over pixels, 0 … 255."""
    return frames.float().diff(dim=0).flatten(2).square().mean(dim=2).sqrt()


def roughness(lengths: Tensor) -> Tensor:
    """Largest step over mean step of each path, (F - 1, P) -> (P,): 1 is perfectly even, F - 1 a single jump."""
    return lengths.amax(dim=0) / lengths.mean(dim=0).clamp_min(1e-12)
