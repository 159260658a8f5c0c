"""What two dimensions show: denoising, and Neon, on points in the plane in place of images."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from helpers import diffusion, solvers, training
from helpers.batches import seeded
from helpers.figures import BLUE, INK, ORANGE, Picture, empty, in_our_look, said


@in_our_look
def denoising(
    points: Tensor, denoise: Callable[[Tensor, float], Tensor], sigmas: tuple[float, ...], way: Tensor
) -> Picture:
    """Where a denoiser of points in the plane sends a grid of them at some noise levels, and a way from noise to data.

    points (N, 2): the data, in -1.6…1.6; denoise(x (M, 2), sigma) -> (M, 2); way (steps, K, 2): K points on theirs.
    """
    figure, axes = empty(1, len(sigmas) + 1, (2.75 * (len(sigmas) + 1), 2.9))
    grid = torch.cartesian_prod(*[torch.linspace(-1.5, 1.5, 9)] * 2)  # (81, 2)
    for axis, sigma in zip(axes[0][:-1], sigmas, strict=True):
        steps = denoise(grid, sigma) - grid
        axis.quiver(*grid.T, *steps.T, angles="xy", scale_units="xy", scale=1, width=0.004)
        axis.set_title(f"denoised at σ = {sigma}")
    axes[0][-1].plot(*way.permute(2, 0, 1), color=ORANGE, linewidth=0.9)
    axes[0][-1].plot(*way[0].T, "o", color=ORANGE, markersize=4, markerfacecolor="white", label="noise")
    axes[0][-1].plot(*way[-1].T, "o", color=INK, markersize=4, label="data", zorder=3)
    axes[0][-1].set_title("from noise to the data")
    axes[0][-1].legend(loc="upper right", fontsize=8, handletextpad=0.1, borderpad=0.1)
    for axis in axes[0][:-1]:
        _plane(axis, points)
    _plane(axes[0][-1], points, max(1.6, 1.05 * float(way.abs().max())))
    ways = "Arrows from points to what a denoiser makes of them: a mean of the spiral, of more of it the higher σ is"
    figure.alt = said(ways, f"σ = {', '.join(map(str, sigmas))}", "on the right, ways from noise to the spiral")
    return figure


@in_our_look
def neon_panels(points: Tensor, samples: dict[int, Tensor]) -> Picture:
    """What `neon` drew, over the points: the pupil, the net, the best; and all distances."""
    distances = {weight: float(torch.cdist(of, points).amin(dim=1).mean()) for weight, of in samples.items()}
    best = min(distances, key=distances.get)
    figure, axes = empty(1, 4, (11, 2.9))
    shown = {"trained on its own samples": -1, "the network": 0, f"stepped away, w = {best}": best}
    for axis, (title, weight) in zip(axes[0], shown.items(), strict=False):
        axis.plot(*samples[weight].T, ".", color=ORANGE, markersize=2)
        axis.set_title(title)
        _plane(axis, points)
    axes[0][-1].plot([*distances], [*distances.values()], "o-", color=BLUE, markersize=4)
    axes[0][-1].set(title="distance from the spiral", xlabel="w", ylim=(0, 1.1 * max(distances.values())))
    said_by = ", ".join(f"w = {weight}: {distance:.3f}" for weight, distance in distances.items())
    figure.alt = said("Samples of points over a spiral, of three networks", f"mean distance from it, {said_by}")
    return figure


def _plane(axis, points: Tensor, size: float = 1.6) -> None:
    axis.plot(*points.T, color=BLUE, linewidth=1.6, zorder=0)
    axis.set(xlim=(-size, size), ylim=(-size, size), aspect="equal", xticks=[], yticks=[])


class _Denoiser(nn.Module):
    """D(x, σ) of points in the plane, preconditioned as `diffusion.Denoiser` is: x (B, 2), σ a number or (B,)."""

    def __init__(self, width: int = 32):
        super().__init__()
        sizes = [3, width, width, width]
        layers = [part for a, b in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(a, b), nn.SiLU())]
        self.net = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=torch.float32).expand(len(x))[:, None]
        c_in = (sigma**2 + 0.5).rsqrt()
        seen = torch.cat([c_in * x, sigma.log() / 4], dim=1)
        return 0.5 * c_in**2 * x + 0.5**0.5 * sigma * c_in * self.net(seen)


@contextmanager
def _one_thread() -> Iterator[None]:
    """For small products: waking a second thread for each takes longer than they do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def neon(points: Tensor, seed: int = 0, weights: Sequence[int] = range(-1, 7)) -> dict[int, Tensor]:
    """Neon on points (N, 2): weight -> samples (2000, 2) of the net that steps so far away, from the same noises.

    Weight 0 is a small net itself, -1 the one that went on training on its own samples. Takes some seconds.
    """

    def fit(net: nn.Module, points: Tensor, steps: int, lr: float, decay: float) -> nn.Module:
        optimizer, ema = torch.optim.Adam(net.parameters(), lr), training.EMA(net, 0.99)
        for step in range(steps):
            training.set_lr(optimizer, lr * training.lr_factor(step, steps, warmup=20, decay=decay))
            clean, sigma = points[torch.randint(len(points), (256,))], (1.2 * torch.randn(256) - 1.2).exp()
            error = net(clean + sigma[:, None] * torch.randn_like(clean), sigma) - clean
            optimizer.zero_grad()
            (error.square().mean(dim=1) * (sigma**2 + 0.5) / (0.5 * sigma**2)).mean().backward()
            optimizer.step()
            ema.update(net)
        return ema.module

    @torch.no_grad()
    def draw(net: nn.Module) -> Tensor:
        x = 5 * torch.randn(2000, 2, generator=torch.Generator().manual_seed(seed))
        return deque(solvers.dpm_solver_steps(net, x, diffusion.karras_sigmas(30, 0.01, 5.0)), maxlen=1).pop()[0]

    with _one_thread(), seeded(seed, 0):
        base = fit(_Denoiser(), points, 3000, 5e-3, 1.0)
        again = _Denoiser()
        again.load_state_dict(base.state_dict())
        worse = fit(again, draw(base), 800, 5e-4, 0.0)
        return {weight: draw(training.step_away(base, worse, weight)) for weight in weights}
