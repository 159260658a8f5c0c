"""One way through the noise: a denoiser D(x, σ, label), its training loss, and how samples are drawn.

Everything lives in "σ coordinates" (Karras et al. 2022, EDM): a noisy image is x = x0 + σ·n with n ~ N(0, I) and
x0 in [-1, 1]. DDPM (Ho et al. 2020) scales the same image by √ᾱ and numbers its noise levels by a step t; the two are
one process, with σ_t = √((1 - ᾱ_t) / ᾱ_t). So the paper recipe and ours differ in settings only.
"""

import math
import operator
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from helpers.batches import to_float, to_uint8
from helpers.solvers import Guided, Interval, Steps, dpm_solver_steps

SIGMA_DATA = 0.5  # standard deviation of images in [-1, 1], as in EDM


def ddpm_schedule() -> Tensor:
    """The noise levels DDPM trains at: σ_t for t = 0 … 999, float64, increasing, from linear β in 1e-4 … 0.02.

    Source: Ho et al. 2020, section 4. σ_t² = (1 - ᾱ_t) / ᾱ_t.
    """
    alphas_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0)
    return ((1 - alphas_bar) / alphas_bar).sqrt()


def ddpm_sigmas(steps: int = 1000) -> Tensor:
    """Noise levels a DDPM or DDIM sampler visits: steps + 1 values, steps in 7…1000, float64, decreasing to 0.

    Level ⌊i · 1000 / steps⌋ for i = 0 … steps - 1: "leading" spacing, whether or not steps divides 1000.
    With fewer than 7 the first is below σ = 40, where an image still shows in the noise: samples would all be greyish.
    """
    if not 7 <= steps <= 1000:
        raise ValueError(f"steps must be in 7…1000 (fewer begin at too low a noise level), got {steps}")
    levels = ddpm_schedule()[torch.arange(steps) * 1000 // steps]
    return torch.cat([levels.flip(0), torch.zeros(1, dtype=torch.float64)])


def karras_sigmas(steps: int = 18, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Noise levels of the EDM sampler: steps + 1 values, float64, from sigma_max to sigma_min and then 0.

    Source: Karras et al. 2022, equation 5.
    """
    if steps < 2 or not 0 < sigma_min < sigma_max:
        raise ValueError(f"expected steps from 2 and 0 < sigma_min < sigma_max, got {steps}, {sigma_min}, {sigma_max}")
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    levels = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return torch.cat([levels, torch.zeros(1, dtype=torch.float64)])


class Denoiser(nn.Module):
    """D(x, σ, labels): the network's estimate of the clean image, whatever it predicts inside.

    D = c_skip·x + c_out·net(c_in·x, ln(σ)/4, labels). prediction "edm": the preconditioning of Karras et al. 2022,
    table 1; "epsilon": the network predicts the noise, as in Ho et al. 2020.

    forward(x, sigma, labels): x float (B, 3, H, W); sigma float, a number or (B,), positive; labels int64 (B,) or
    float class embeddings (B, E). Returns float32 (B, 3, H, W).
    """

    def __init__(self, net: nn.Module, prediction: str = "edm"):
        super().__init__()
        if prediction not in ("edm", "epsilon"):
            raise ValueError(f"prediction must be 'edm' or 'epsilon', got {prediction!r}")
        self.net = net
        self.prediction = prediction

    def scaling(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c_skip, c_out and c_in at noise levels sigma, any shape.

        The images' pixels have the standard deviation SIGMA_DATA = 0.5.
        """
        if self.prediction == "epsilon":  # as in DDPM: x less the noise
            return torch.ones_like(sigma), -sigma, (sigma**2 + 1).rsqrt()
        variance = sigma**2 + SIGMA_DATA**2  # of x
        c_in = variance.rsqrt()
        return SIGMA_DATA**2 / variance, sigma * SIGMA_DATA * c_in, c_in

    def forward(self, x: Tensor, sigma: Tensor | float, labels: Tensor) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(x.shape[0])
        c_skip, c_out, c_in = self.scaling(sigma[:, None, None, None])
        x = x.float()
        return c_skip * x + c_out * self.net(c_in * x, sigma.log() / 4, labels).float()

    def training_sigmas(self, count: int, mean: float = -1.2, std: float = 1.2) -> Tensor:
        """Noise levels to train at, (count,), at random: ln σ ~ N(mean, std²) as in EDM; with "epsilon" a uniform t."""
        device = next(self.parameters()).device
        if self.prediction == "epsilon":
            levels = _ddpm_levels(device)
            return levels[torch.randint(len(levels), (count,), device=device)]
        return (torch.randn(count, device=device, dtype=torch.float32) * std + mean).exp()


@lru_cache(maxsize=4)
def _ddpm_levels(device: torch.device) -> Tensor:
    return ddpm_schedule().float().to(device)


def loss(
    denoiser: Denoiser,
    images: Tensor,
    labels: Tensor,
    sigma: Tensor,
    *,
    label_dropout: float = 0.0,
) -> Tensor:
    """Training loss of each image, float (B,); average it to train.

    denoiser: the one to train.
    images: uint8 (B, 3, H, W).
    labels: int64 (B,) in 0…classes.
    sigma: noise levels, float (B,), such as `denoiser.training_sigmas(B)`.
    label_dropout: the share of labels, 0…1, replaced by the null label, which guidance needs
        (Ho and Salimans 2022). Random numbers come from torch's global generator.
    """
    x0 = to_float(images)
    if label_dropout:
        chance = torch.rand(len(labels), device=labels.device, dtype=torch.float32)
        labels = labels.masked_fill(chance < label_dropout, denoiser.net.classes)
    noisy = x0 + sigma[:, None, None, None] * torch.randn_like(x0)
    error = (denoiser(noisy, sigma, labels) - x0).square().mean(dim=(1, 2, 3))
    # Divided by c_out², it is the error of the network's own output: with "epsilon" that of the
    # noise, L_simple of Ho et al.; with "edm" the weight is (σ² + σ_data²) / (σ·σ_data)², as in
    # Karras et al.
    _, c_out, _ = denoiser.scaling(sigma)
    return error / c_out**2


def starting_noise(count: int, seed: int, size: int = 32) -> Tensor:
    """Standard normal noise float32 (count, 3, size, size) on the CPU; row i depends on (seed, i, size) only.

    seed: whole, from 0, of any size. Other seeds give other noise, and so do other purposes: what `ddpm_steps` adds,
    and what training draws.
    """
    rows = [_normal(_stream("start", seed, i), (3, size, size)) for i in range(count)]
    return torch.stack(rows) if rows else torch.empty(0, 3, size, size, dtype=torch.float32)


def checked_labels(denoiser: Denoiser, labels: Tensor) -> Tensor:
    """The labels of one or more images: int (B,) in 0…classes, or embeddings float (B, E). Raises ValueError."""
    labels, classes = torch.as_tensor(labels), denoiser.net.classes
    embeddings = labels.is_floating_point()
    if labels.ndim != 1 + embeddings or len(labels) == 0 or labels.dtype == torch.bool:
        raise ValueError(f"labels must be int (B,) or float (B, E), got {labels.dtype} {tuple(labels.shape)}")
    if not embeddings and not ((labels >= 0) & (labels <= classes)).all():
        raise ValueError(f"labels must be in 0…{classes - 1} ({classes}: of any class)")
    return labels if embeddings else labels.long()


def checked_sigmas(sigmas: Tensor | None) -> Tensor:
    """Noise levels that a sampler can follow, `karras_sigmas()` for None. Raises ValueError."""
    sigmas = karras_sigmas() if sigmas is None else torch.as_tensor(sigmas)
    if sigmas.ndim != 1 or len(sigmas) < 2 or sigmas[-1] != 0 or not (sigmas.diff() < 0).all():
        raise ValueError("sigmas must be noise levels that fall from one to the next, and end in 0")
    return sigmas


def _stream(purpose: str, seed: int, index: int) -> np.random.Generator:
    """Random numbers of their own for each (purpose, seed, index); torch's generator on a CPU has 32 bits of seed."""
    key = int.from_bytes(purpose.encode(), "big"), index
    return np.random.default_rng(np.random.SeedSequence(operator.index(seed), spawn_key=key))


def _normal(stream: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(stream.standard_normal(shape, dtype=np.float32))


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    labels: Tensor,
    *,
    seed: int = 0,
    noise: Tensor | None = None,
    rows: Tensor | None = None,
    sigmas: Tensor | None = None,
    solver: Callable[..., Steps] = dpm_solver_steps,
    guidance: float = 1.0,
    interval: Interval = (0.0, math.inf),
    batch_size: int = 250,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Draw one image per label -> uint8 (B, 3, H, W) on the CPU, 32 × 32 unless `noise` is of another size.

    denoiser: a trained one.
    labels: int64 (B,) in 0…classes, or class embeddings float (B, E).
    seed: of the starting noise, and of the noise that `ddpm_steps` adds.
    noise: float (B, 3, H, W), N(0, I), in place of the starting noise drawn from `seed`.
    rows: which row of the noise that `ddpm_steps` adds an image takes, int (B,); its own unless given. Images of one
        row get the same.
    sigmas: noise levels, float (steps + 1,), decreasing to 0; `karras_sigmas()` where there are none.
    solver: `dpm_solver_steps`, `heun_steps`, `ddim_steps` (all deterministic) or `ddpm_steps`.
    guidance: the scale, from 0; 1 for none, as for a network that was trained without label dropout.
    interval: the lowest and the highest noise level at which guidance acts; see `solvers.Guided`.
    batch_size: images at a time, from 1; image i is the same whatever it is, up to rounding.
    progress: called with (images done, images in all) after every batch.
    Raises ValueError on labels, noise or noise levels of another kind.
    """
    labels = checked_labels(denoiser, labels)
    noise = starting_noise(len(labels), seed) if noise is None else torch.as_tensor(noise)
    if noise.ndim != 4 or noise.shape[:2] != (len(labels), 3):
        raise ValueError(f"expected noise ({len(labels)}, 3, H, W), one for each label, got {tuple(noise.shape)}")
    sigmas, device = checked_sigmas(sigmas), next(denoiser.parameters()).device
    rows = list(range(len(labels))) if rows is None else torch.as_tensor(rows).tolist()
    if len(rows) != len(labels) or batch_size < 1:
        raise ValueError(f"expected a row for each of {len(labels)} labels and a batch of 1 or more")
    images = []
    for start in range(0, len(labels), batch_size):
        part = slice(start, start + batch_size)
        x = noise[part].to(device) * float(sigmas[0])
        streams = [_stream("added", seed, row) for row in rows[part]]
        denoise = Guided(denoiser, labels[part].to(device), guidance, interval)

        def added(own=streams) -> Tensor:
            return torch.stack([_normal(stream, noise.shape[1:]) for stream in own]).to(device)

        steps = solver(denoise, x, sigmas, added)
        images.append(to_uint8(deque(steps, maxlen=1).pop()[0]).cpu())
        if progress:
            progress(start + len(x), len(labels))
    return torch.cat(images)


def evaluations(*, sigmas: Tensor, solver: Callable[..., Steps] = dpm_solver_steps, **guiding) -> int:
    """The number of function evaluations an image takes: calls of the network by `sample` with these options of its."""
    called_at = []

    def network(x: Tensor, sigma: float, labels: Tensor) -> Tensor:
        called_at.append(sigma)
        return x

    network.net = SimpleNamespace(classes=0)
    x = torch.zeros(1, 1)
    deque(solver(Guided(network, x, **guiding), x, checked_sigmas(sigmas), lambda: x), maxlen=0)
    return len(called_at)
