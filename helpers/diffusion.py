"""One way through the noise: a denoiser D(x, σ, label), its training loss, and three samplers.

Everything lives in "σ coordinates" (Karras et al. 2022, EDM): a noisy image is x = x0 + σ·n with n ~ N(0, 1) and
x0 in [-1, 1]. DDPM (Ho et al. 2020) scales the same image by √ᾱ and names its noise level by a step t; the two are
one process, with σ_t = √((1 - ᾱ_t) / ᾱ_t). So the report's plain DDPM and the best recipe differ in settings only.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

SIGMA_DATA = 0.5  # standard deviation of images in [-1, 1], as in EDM


# --- noise levels -----------------------------------------------------------------------------------------------


def ddpm_sigmas(steps: int = 1000) -> Tensor:
    """The report's schedule: σ_t for t = 0 … steps - 1, float64, increasing, from linear β in 1e-4 … 0.02.

    Source: Ho et al. 2020, section 4. σ_t² = (1 - ᾱ_t) / ᾱ_t.
    """
    alphas_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, steps, dtype=torch.float64), dim=0)
    return ((1 - alphas_bar) / alphas_bar).sqrt()


def ddpm_path(steps: int = 1000, train_steps: int = 1000) -> Tensor:
    """Noise levels a DDPM or DDIM sampler visits: steps + 1 values, float64, decreasing to 0.

    Level ⌊i · train_steps / steps⌋ for i = 0 … steps - 1: "leading" spacing, also where steps does not divide
    train_steps. steps must be in 1…train_steps.
    """
    if not 1 <= steps <= train_steps:
        raise ValueError(f"steps must be in 1…{train_steps}, got {steps}")
    levels = ddpm_sigmas(train_steps)[torch.arange(steps) * train_steps // steps]
    return torch.cat([levels.flip(0), torch.zeros(1, dtype=torch.float64)])


def karras_path(steps: int = 18, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Noise levels of the EDM sampler: steps + 1 values, float64, from sigma_max to sigma_min and then 0.

    Source: Karras et al. 2022, equation 5.
    """
    if steps < 2:
        raise ValueError(f"steps must be at least 2, got {steps}")
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    levels = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return torch.cat([levels, torch.zeros(1, dtype=torch.float64)])


# --- the denoiser and its loss ----------------------------------------------------------------------------------


class Denoiser(nn.Module):
    """D(x, σ, labels): the network's estimate of the clean image, whatever it predicts inside.

    D = c_skip·x + c_out·net(c_in·x, ln(σ)/4, labels).
    prediction "edm": the preconditioning of Karras et al. 2022, table 1: unit variance in, unit variance out.
    prediction "epsilon": the network predicts the noise, as in Ho et al. 2020 (c_skip 1, c_out -σ).

    forward(x, sigma, labels): x float (B, 3, H, W); sigma float, a number or (B,), positive; labels int64 (B,) or
    float class embeddings (B, E). Returns float32 (B, 3, H, W).
    """

    def __init__(self, net: nn.Module, prediction: str = "edm"):
        super().__init__()
        if prediction not in ("edm", "epsilon"):
            raise ValueError(f"prediction must be 'edm' or 'epsilon', got {prediction!r}")
        self.net = net
        self.prediction = prediction
        self.register_buffer("levels", ddpm_sigmas().float(), persistent=False)  # those of "epsilon"

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(c_skip, c_out, c_in) at noise levels sigma, any shape."""
        if self.prediction == "epsilon":
            return torch.ones_like(sigma), -sigma, (1 + sigma**2).rsqrt()
        total = sigma**2 + SIGMA_DATA**2
        return SIGMA_DATA**2 / total, sigma * SIGMA_DATA * total.rsqrt(), total.rsqrt()

    def forward(self, x: Tensor, sigma: Tensor | float, labels: Tensor) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(len(x))
        c_skip, c_out, c_in = (c[:, None, None, None] for c in self.coefficients(sigma))
        x = x.float()
        return c_skip * x + c_out * self.net(c_in * x, sigma.log() / 4, labels).float()


def to_float(images: Tensor) -> Tensor:
    """uint8 images in 0…255 -> float32 in [-1, 1]. Raises TypeError: floats in 0…1 would silently train nonsense."""
    if images.dtype != torch.uint8:
        raise TypeError(f"expected uint8 images in 0…255, got {images.dtype}: pass what `data.cifar100` returns")
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """float images -> uint8; values outside [-1, 1] are clipped. Raises ValueError for NaN, which has no byte."""
    if x.isnan().any():
        raise ValueError("the images hold NaN: the weights or the noise they come from are not finite")
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def loss(denoiser: Denoiser, images: Tensor, labels: Tensor, *, label_dropout: float = 0.0) -> tuple[Tensor, Tensor]:
    """Training loss of one batch -> (loss of each image (B,), its noise level σ (B,)); average the first to train.

    images uint8 (B, 3, H, W); labels int64 (B,). Random numbers come from torch's global generator.
    "epsilon": uniform t, mean squared error of the noise (Ho et al. 2020, L_simple). "edm": ln σ ~ N(-1.2, 1.2²),
    weight (σ² + σ_data²) / (σ·σ_data)² = 1 / c_out² (Karras et al. 2022). Both are the error of the network's own
    output, so the weight is 1 / c_out² in either case.
    label_dropout: the share of labels replaced by the null label, which guidance needs (Ho and Salimans 2022).
    """
    x0 = to_float(images)
    if denoiser.prediction == "epsilon":
        sigma = denoiser.levels[torch.randint(len(denoiser.levels), (len(x0),), device=x0.device)]
    else:
        sigma = (torch.randn(len(x0), device=x0.device) * 1.2 - 1.2).exp()
    if label_dropout:
        dropped = torch.rand(len(labels), device=labels.device) < label_dropout
        labels = labels.masked_fill(dropped, denoiser.net.classes)
    noisy = x0 + sigma[:, None, None, None] * torch.randn_like(x0)
    weight = denoiser.coefficients(sigma)[1] ** -2
    error = (denoiser(noisy, sigma, labels) - x0).square().mean(dim=(1, 2, 3))
    return weight * error, sigma


# --- sampling ---------------------------------------------------------------------------------------------------


def guided(
    denoiser: Callable, labels: Tensor, scale: float = 1.0, interval: tuple[float, float] = (0.0, math.inf)
) -> Callable[[Tensor, float], Tensor]:
    """A denoiser of (x, sigma) for these labels, with classifier-free guidance (Ho and Salimans 2022).

    scale 1 is the plain conditional model; larger trades variety for fidelity. Outside `interval` of noise levels
    the guidance is off (Kynkäänniemi et al. 2024), which also saves the second evaluation.
    """

    def denoise(x: Tensor, sigma: float) -> Tensor:
        conditional = denoiser(x, sigma, labels)
        if scale == 1 or not interval[0] <= sigma <= interval[1]:
            return conditional
        null = torch.full((len(x),), denoiser.net.classes, device=x.device)
        unconditional = denoiser(x, sigma, null)
        return unconditional + scale * (conditional - unconditional)

    return denoise


def ancestral_steps(
    denoise: Callable[[Tensor, float], Tensor], x: Tensor, path: Tensor, *, eta: float = 0.0, noise: Callable = None
) -> Iterator[Tensor]:
    """Yield x after each step along `path`: DDPM's ancestral sampler at eta = 1, DDIM at eta = 0.

    denoise(x, sigma) -> clean image; x (B, …) at noise level path[0], in σ coordinates; noise() -> fresh N(0, 1)
    of x's shape, needed when eta > 0. Clean images are clipped to [-1, 1], the variance is "fixed small", as in Ho
    et al.'s code. Sources: Ho et al. 2020, equation 7; Song et al. 2021, equation 12.
    """
    for sigma, sigma_next in zip(path[:-1].tolist(), path[1:].tolist(), strict=True):
        clean = denoise(x, sigma).clamp(-1, 1)
        fresh = eta * sigma_next * math.sqrt(max(0.0, 1 - (sigma_next / sigma) ** 2))  # std of the new noise
        kept = math.sqrt(max(0.0, sigma_next**2 - fresh**2))  # std of the old noise that stays
        x = clean + (kept / sigma) * (x - clean)
        if fresh > 0:
            x = x + fresh * noise()
        yield x


def heun_steps(denoise: Callable[[Tensor, float], Tensor], x: Tensor, path: Tensor) -> Iterator[Tensor]:
    """Yield x after each step along `path` of Heun's second-order method for dx/dσ = (x - D(x, σ)) / σ.

    Arguments as in `ancestral_steps`; `path` may also ascend (inversion). Two evaluations a step, one for the
    last step to 0. Source: Karras et al. 2022, algorithm 1.
    """
    for sigma, sigma_next in zip(path[:-1].tolist(), path[1:].tolist(), strict=True):
        slope = (x - denoise(x, sigma)) / sigma
        ahead = x + (sigma_next - sigma) * slope
        if sigma_next > 0:
            slope_ahead = (ahead - denoise(ahead, sigma_next)) / sigma_next
            ahead = x + (sigma_next - sigma) * (slope + slope_ahead) / 2
        x = ahead
        yield x


def multistep_steps(denoise: Callable[[Tensor, float], Tensor], x: Tensor, path: Tensor) -> Iterator[Tensor]:
    """Yield x after each step along a descending `path` of DPM-Solver++ (2M) for the equation of `heun_steps`.

    Second order as well, with one evaluation a step: the line through this estimate of the clean image and the last
    one, over ln σ, stands in for the second evaluation. Arguments as in `ancestral_steps`. Source: Lu et al. 2022.
    """
    last, last_log_step = None, 0.0
    for sigma, sigma_next in zip(path[:-1].tolist(), path[1:].tolist(), strict=True):
        clean = denoise(x, sigma)
        target, log_step = clean, math.log(sigma / sigma_next) if sigma_next > 0 else math.inf
        if last is not None and sigma_next > 0:
            target = clean + (clean - last) * log_step / (2 * last_log_step)
        x = target + (sigma_next / sigma) * (x - target)
        last, last_log_step = clean, log_step
        yield x


def starting_noise(count: int, seed: int, size: int = 32) -> Tensor:
    """Standard normal noise float32 (count, 3, size, size) on the CPU; row i depends on (seed, i) only."""
    return _randn([_generator(seed, i) for i in range(count)], size)


def _generator(seed: int, row: int, stream: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed((2 * seed + stream) * 1_000_003 + row)


def _randn(generators: list[torch.Generator], size: int) -> Tensor:
    return torch.stack([torch.randn(3, size, size, generator=g) for g in generators])


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    labels: Tensor,
    *,
    seed: int = 0,
    noise: Tensor | None = None,
    path: Tensor | None = None,
    sampler: str = "multistep",
    eta: float = 0.0,
    guidance: float = 1.0,
    interval: tuple[float, float] = (0.0, math.inf),
    batch: int = 250,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Draw one image per label -> uint8 (B, 3, 32, 32) on the CPU.

    labels int64 (B,) or class embeddings float (B, E). noise float (B, 3, 32, 32), N(0, 1), replaces the one drawn
    from `seed`. path: decreasing noise levels ending in 0 (default: `karras_path()`). sampler "multistep" or "heun"
    (both deterministic) or "ancestral" (with eta: 0 is DDIM, 1 is DDPM). guidance, interval: see `guided`.
    progress(done, total) is called after every batch. Image i is the same whatever the batch size, up to rounding.
    """
    if sampler not in ("multistep", "heun", "ancestral"):
        raise ValueError(f"sampler must be 'multistep', 'heun' or 'ancestral', got {sampler!r}")
    if noise is not None and len(noise) != len(labels):
        raise ValueError(f"{len(noise)} noises for {len(labels)} labels: give one each")
    noise = starting_noise(len(labels), seed) if noise is None else noise
    path = karras_path() if path is None else path
    device = next(denoiser.parameters()).device
    images = []
    for start in range(0, len(labels), batch):
        rows = slice(start, start + batch)
        x = noise[rows].to(device) * float(path[0])
        denoise = guided(denoiser, labels[rows].to(device), guidance, interval)
        if sampler == "multistep":
            steps = multistep_steps(denoise, x, path)
        elif sampler == "heun":
            steps = heun_steps(denoise, x, path)
        else:
            streams = [_generator(seed, i, stream=1) for i in range(start, start + len(x))]
            steps = ancestral_steps(denoise, x, path, eta=eta, noise=lambda g=streams: _randn(g, 32).to(device))
        images.append(to_uint8(deque(steps, maxlen=1).pop()).cpu())
        if progress:
            progress(start + len(x), len(labels))
    return torch.cat(images)
