"""From noise to images: guidance, and the solvers that follow a denoiser down the noise levels."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

# A solver takes x (B, …) at noise level sigmas[0], in σ coordinates, down the levels. After each step it yields x and
# the estimate of the clean image. noise() -> new N(0, I) of x's shape; deterministic solvers never call it.
Denoise = Callable[[Tensor, float], Tensor]
Noise = Callable[[], Tensor] | None
Steps = Iterator[tuple[Tensor, Tensor]]
Interval = tuple[float, float]  # the lowest and the highest noise level


class Guided:
    """A denoiser of (x, sigma) for these labels, with classifier-free guidance (Ho and Salimans 2022).

    guidance: its scale; 1 is the plain conditional model; larger trades variety for fidelity. It is on from the first
    noise level inside `interval` to the first one below, which saves evaluations (Kynkäänniemi et al. 2024).
    """

    def __init__(self, denoiser: Callable, labels: Tensor, guidance: float = 1.0, interval: Interval = (0.0, math.inf)):
        if interval[0] > interval[1]:
            raise ValueError(f"interval must be (low, high), got {interval}")
        self.denoiser, self.labels, self.guidance, self.interval = denoiser, labels, guidance, interval

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        return self.estimates(x, sigma)[-1]

    def estimates(self, x: Tensor, sigma: float) -> tuple[Tensor, ...]:
        """The conditional estimate; and the guided one, where guidance is on.

        A solver with a history needs both.
        """
        conditional = self.denoiser(x, sigma, self.labels)
        if self.guidance == 1 or not self.interval[0] <= sigma <= self.interval[1]:
            return (conditional,)
        null = torch.full((len(x),), self.denoiser.net.classes, device=x.device)
        unconditional = self.denoiser(x, sigma, null)
        return conditional, unconditional + self.guidance * (conditional - unconditional)


def ddim_steps(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise = None, *, eta: float = 0.0) -> Steps:
    """DDIM at eta = 0; at eta = 1 DDPM's ancestral sampler, with new noise after each step but the last (`ddpm_steps`).

    denoise, x, sigmas, noise: as of any solver, see `Denoise`.
    eta: the share of DDPM's noise, 0…1. Estimates are clipped to [-1, 1], as in Ho et al.'s
    code. Sources: Ho et al. 2020, equation 7; Song et al. 2021, equation 12. ValueError where `noise` is missing.
    """
    if eta > 0 and noise is None:
        raise ValueError(f"with eta = {eta} each step adds noise: pass noise, a function that returns some like x")
    for sigma, sigma_next in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        estimate = denoise(x, sigma).clamp(-1, 1)
        sigma_up = eta * sigma_next * math.sqrt(max(0.0, 1 - (sigma_next / sigma) ** 2))
        sigma_down = math.sqrt(max(0.0, sigma_next**2 - sigma_up**2))
        x = estimate + (sigma_down / sigma) * (x - estimate)
        if sigma_up > 0:
            x = x + sigma_up * noise()
        yield x, estimate


ddpm_steps = partial(ddim_steps, eta=1.0)


def heun_steps(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise = None) -> Steps:
    """Heun's second-order method for dx/dσ = (x - D(x, σ)) / σ; `sigmas` may also ascend (inversion).

    Two evaluations a step, one for the last step to 0. Source: Karras et al. 2022, algorithm 1.
    """
    for sigma, sigma_next in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        estimate = denoise(x, sigma)
        slope = (x - estimate) / sigma
        ahead = x + (sigma_next - sigma) * slope
        if sigma_next > 0:
            slope_ahead = (ahead - denoise(ahead, sigma_next)) / sigma_next
            ahead = x + (sigma_next - sigma) * (slope + slope_ahead) / 2
        x = ahead
        yield x, estimate


def dpm_solver_steps(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise = None) -> Steps:
    """DPM-Solver++ (2M) for dx/dσ = (x - D(x, σ)) / σ, along descending `sigmas`.

    Second order, with one evaluation a step. Deterministic: `noise` is not used. Where guidance
    begins or ends, estimates jump, so the slope there is that of the conditional estimates.
    Source: Lu et al. 2022.
    """
    knows = isinstance(denoise, Guided)
    estimates = denoise.estimates if knows else lambda x, sigma: (denoise(x, sigma),)
    last, last_log_step = None, 0.0
    for sigma, sigma_next in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        now = estimates(x, sigma)
        target = now[-1]
        log_step = math.log(sigma / sigma_next) if sigma_next > 0 else math.inf
        if last is not None and sigma_next > 0:
            # The line through the last two estimates, over ln σ, halfway along this step.
            alike = min(len(now), len(last)) - 1  # if only one is guided: the conditional ones
            target = target + (now[alike] - last[alike]) * log_step / (2 * last_log_step)
        x = target + (sigma_next / sigma) * (x - target)
        last, last_log_step = now, log_step
        yield x, now[-1]


# As cards name them.
SOLVERS = {"DPM-Solver++ (2M)": dpm_solver_steps, "Heun": heun_steps, "DDIM": ddim_steps, "DDPM": ddpm_steps}
