import functools
import math
import types
from collections import deque

import pytest
import torch

from helpers import diffusion, solvers

# --- golden values of a public scheduler library (its test suite's full loops, see README) --------------------------


def _golden_loop(steps, eta):
    x = (torch.arange(768) / 768).reshape(3, 8, 8, 4).permute(3, 0, 1, 2).double()
    levels, path = diffusion.ddpm_schedule(), diffusion.ddpm_sigmas(steps)
    generator = torch.manual_seed(0)

    def denoise(scaled, sigma):  # the stand-in network returns x·t / (t + 1) in DDPM's own scaling
        t = int((levels - sigma).abs().argmin())
        return scaled - sigma * (scaled / math.sqrt(1 + sigma**2)) * t / (t + 1)

    x = x * math.sqrt(1 + float(path[0]) ** 2)
    noise = lambda: torch.randn(x.shape, generator=generator)  # noqa: E731
    return deque(solvers.ddim_steps(denoise, x, path, noise, eta=eta), maxlen=1).pop()[0].abs()


def test_golden_ddpm():
    out = _golden_loop(1000, eta=1.0)
    assert float(out.sum()) == pytest.approx(258.9606, abs=1e-2)
    assert float(out.mean()) == pytest.approx(0.3372, abs=1e-3)


def test_golden_ddim():
    out = _golden_loop(10, eta=0.0)
    assert float(out.sum()) == pytest.approx(172.0067, abs=1e-2)
    assert float(out.mean()) == pytest.approx(0.223967, abs=1e-3)


@pytest.mark.parametrize(("t", "expected"), [(0, 0.0), (487, 0.00979), (999, 0.02)])
def test_golden_posterior_variance(t, expected):
    """Variance that `ddpm_steps` adds going from t to t - 1, in DDPM's scaling."""
    levels = torch.cat([torch.zeros(1, dtype=torch.float64), diffusion.ddpm_schedule()])
    path = torch.stack([levels[t + 1], levels[t]])
    unit = torch.ones(1, dtype=torch.float64)
    quiet, loud = (next(solvers.ddpm_steps(lambda x, s: 0 * x, unit, path, lambda n=n: n * unit))[0] for n in (0, 1))
    variance = float(loud - quiet) ** 2 / (1 + float(path[1]) ** 2)
    assert variance == pytest.approx(expected, abs=1e-5)


SPREAD = 0.3  # data ~ N(0, 0.3²): D(x, σ) = x·0.09 / (0.09 + σ²), and the solution is known


def _gaussian(x, sigma):
    return x * SPREAD**2 / (SPREAD**2 + sigma**2)


def _solution(x, sigma, sigma_next):
    return x * math.sqrt((SPREAD**2 + sigma_next**2) / (SPREAD**2 + sigma**2))


def _solver_error(solver, steps):
    levels = torch.linspace(1, 0.1, steps + 1, dtype=torch.float64)
    x = torch.ones(1, dtype=torch.float64)
    *_, (end, _) = solver(_gaussian, x, levels)
    return abs(float(end - _solution(x, 1.0, 0.1)))


@pytest.mark.parametrize("solver", [solvers.heun_steps, solvers.dpm_solver_steps])
def test_the_solvers_converge_at_second_order(solver):
    errors = [_solver_error(solver, n) for n in (20, 40, 80)]
    orders = [math.log2(a / b) for a, b in zip(errors[:-1], errors[1:], strict=True)]
    assert all(1.8 < order < 2.3 for order in orders)


def test_multistep_takes_a_line_of_estimates_over_log_sigma_exactly():
    # Where D is linear in ln σ and does not depend on x, the estimate at the middle of a step is exact.
    seen = []

    def denoise(x, sigma):
        seen.append(sigma)
        return torch.full_like(x, 2.0 + math.log(sigma))

    x = torch.tensor([5.0], dtype=torch.float64)
    steps = solvers.dpm_solver_steps(denoise, x, torch.tensor([8.0, 4.0, 1.0, 0.0]))
    (first, guess), (second, _), (last, _) = steps
    torch.testing.assert_close(guess, torch.full_like(x, 2 + math.log(8)))  # what the step took x for
    assert seen == [8.0, 4.0, 1.0]  # one evaluation a step
    start, middle = 2 + math.log(8), 2 + math.log(4) - math.log(4) / 2  # Euler's step, then the middle of [ln 4, ln 1]
    torch.testing.assert_close(first, start + (x - start) / 2)
    torch.testing.assert_close(second, middle + (first - middle) / 4)
    torch.testing.assert_close(last, torch.full_like(x, 2.0))


def _two_gaussians(x, sigma, labels):
    """Exact estimates for normal data: of a narrow class 0, or where no label is told, of all data."""
    mean, variance = torch.tensor([[0.5], [-0.3]]).double()[labels], torch.tensor([[0.04], [0.25]]).double()[labels]
    return (mean * sigma**2 + variance * x) / (variance + sigma**2)


_two_gaussians.net = types.SimpleNamespace(classes=1)


def _guided_end(times, knows_of_guidance=True):
    """Where 12 · times + 1 steps end that are guided from just below the tenth of 13 levels up to the fifth."""
    edges, x = diffusion.karras_sigmas(13), torch.linspace(-80, 80, 5, dtype=torch.float64)[:, None]
    interval = 1.0001 * float(edges[9]), 1.0001 * float(edges[4])
    guided = solvers.Guided(_two_gaussians, torch.zeros(5, dtype=torch.long), 2.5, interval)
    denoise = guided if knows_of_guidance else lambda x, sigma: guided(x, sigma)
    *_, (end, _) = solvers.dpm_solver_steps(denoise, x, diffusion.karras_sigmas(12 * times + 1))
    return end


def test_multistep_is_of_second_order_where_guidance_begins_and_ends_at_levels():
    """A slope across such an edge would hold guidance that nobody asked for, and be of first order only."""
    reference = _guided_end(400)
    errors = [float((_guided_end(times) - reference).abs().max()) for times in (2, 4, 8)]
    orders = [math.log2(a / b) for a, b in zip(errors[:-1], errors[1:], strict=True)]
    assert all(1.8 < order < 2.4 for order in orders)
    assert 4 * errors[-1] < float((_guided_end(8, False) - reference).abs().max())


def test_the_slope_at_an_edge_of_guidance_is_that_of_the_conditional_estimates():
    """By hand, over levels 8, 4, 2, 1, 0.5: guided at 4 and 2. Classes say 10 σ and σ², whatever x is."""

    def network(x, sigma, labels):
        return torch.full_like(x, sigma**2 if labels[0] else 10 * sigma)

    network.net = types.SimpleNamespace(classes=1)
    x, levels = torch.tensor([100.0], dtype=torch.float64), torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5])
    guided = solvers.Guided(network, torch.zeros(1, dtype=torch.long), 2.0, (1.5, 5.0))
    found = list(solvers.dpm_solver_steps(guided, x, levels))
    assert [float(estimate) for _, estimate in found] == [80, 2 * 40 - 16, 2 * 20 - 4, 10]  # of the guided network
    slopes = [0, (40 - 80) / 2, (36 - 64) / 2, (10 - 20) / 2]  # a step is as long as the one before
    for (end, estimate), slope in zip(found, slopes, strict=True):
        x = (estimate + slope + x) / 2
        torch.testing.assert_close(end, x)


def test_what_is_wrapped_around_a_guided_denoiser_is_what_is_asked(denoiser):
    guided, x = solvers.Guided(denoiser, torch.tensor([3]), 2.5, (0.05, 6.0)), diffusion.starting_noise(1, 5) * 80

    @functools.wraps(guided, updated=["__dict__"])
    def nothing(x, sigma):
        return torch.zeros_like(x)

    *_, (end, _) = solvers.dpm_solver_steps(nothing, x, diffusion.karras_sigmas(6))
    assert not end.any()


@pytest.mark.parametrize("guiding", [(1.0,), (2.5,), (2.5, (100.0, 200.0)), (0.0, (0.0, 80.0))])
def test_multistep_with_guidance_nowhere_or_everywhere_is_that_of_any_denoiser(denoiser, guiding):
    guided, noise = solvers.Guided(denoiser, torch.tensor([3, 1]), *guiding), diffusion.starting_noise(2, 5)
    with torch.no_grad():
        ours = [end for end, _ in solvers.dpm_solver_steps(guided, noise * 80, diffusion.karras_sigmas(6))]
        plain = solvers.dpm_solver_steps(lambda x, sigma: guided(x, sigma), noise * 80, diffusion.karras_sigmas(6))
        assert all(torch.equal(a, b) for a, (b, _) in zip(ours, plain, strict=True))


def test_ancestral_sampling_reproduces_the_data_distribution():
    generator = torch.Generator().manual_seed(0)
    path = diffusion.ddpm_sigmas(1000)
    x = float(path[0]) * torch.randn(20_000, generator=generator)
    steps = solvers.ddpm_steps(_gaussian, x, path, lambda: torch.randn(20_000, generator=generator))
    x = deque(steps, maxlen=1).pop()[0]
    assert float(x.std()) == pytest.approx(SPREAD, rel=0.03)
    assert float(x.mean()) == pytest.approx(0, abs=0.02)


def test_guidance(denoiser):
    x, labels = torch.randn(2, 3, 8, 8), torch.tensor([1, 2])
    with torch.no_grad():
        plain = denoiser(x, 1.0, labels)
        null = denoiser(x, 1.0, torch.tensor([5, 5]))
        assert torch.equal(solvers.Guided(denoiser, labels, 1.0)(x, 1.0), plain)
        assert torch.equal(solvers.Guided(denoiser, labels, 3.0, (2.0, 9.0))(x, 1.0), plain)
        for scale in (3.0, 0.5, 0.0, -1.0):
            found = solvers.Guided(denoiser, labels, scale)(x, 1.0)
            torch.testing.assert_close(found, null + scale * (plain - null))


@pytest.mark.parametrize(
    ("sigma", "calls"), [(0.049, 1), (0.05, 2), (0.051, 2), (5.99, 2), (6.0, 2), (6.01, 1), (80.0, 1), (0.002, 1)]
)
def test_guidance_acts_between_both_ends_of_its_interval_and_only_there(sigma, calls):
    asked = []

    def denoiser(x, sigma, labels):
        asked.append(labels.tolist())
        return x

    denoiser.net = types.SimpleNamespace(classes=7)
    x, labels = torch.zeros(2, 3, 4, 4), torch.tensor([1, 2])
    solvers.Guided(denoiser, labels, 2.0, (0.05, 6.0))(x, sigma)
    assert asked == [[1, 2], [7, 7]][:calls]
    asked.clear()
    solvers.Guided(denoiser, labels, 1.0, (0.05, 6.0))(x, sigma)  # without strength it costs nothing
    assert asked == [[1, 2]]


def test_the_default_interval_is_everywhere_and_the_default_scale_none(denoiser):
    x, labels = torch.randn(2, 3, 8, 8), torch.tensor([1, 2])
    with torch.no_grad():
        for sigma in (0.002, 80.0):
            plain, null = denoiser(x, sigma, labels), denoiser(x, sigma, torch.tensor([5, 5]))
            assert torch.equal(solvers.Guided(denoiser, labels)(x, sigma), plain)
            torch.testing.assert_close(solvers.Guided(denoiser, labels, 2.0)(x, sigma), 2 * plain - null)


def test_a_solver_goes_by_its_own_name():
    assert solvers.SOLVERS == {
        "DPM-Solver++ (2M)": solvers.dpm_solver_steps, "Heun": solvers.heun_steps,
        "DDIM": solvers.ddim_steps, "DDPM": solvers.ddpm_steps,
    }  # fmt: skip


def test_noise_is_drawn_for_each_step_but_the_last_and_by_ddpm_alone():
    x, drawn = torch.ones(1, 1, 1, 1), []
    for name, solver in solvers.SOLVERS.items():
        steps = solver(lambda x, sigma: 0 * x, x, torch.tensor([2.0, 1.0, 0.5, 0.0]), lambda: drawn.append(1) or x)
        deque(steps, maxlen=0)
        assert len(drawn) == (2 if name == "DDPM" else 0)
    deque(solvers.ddim_steps(lambda x, sigma: 0 * x, x, torch.tensor([2.0, 1.0, 0.0])), maxlen=0)  # needs none


def test_a_sampler_that_adds_noise_says_when_it_has_none():
    with pytest.raises(ValueError, match="with eta = 1.0 each step adds noise: pass noise"):
        next(solvers.ddpm_steps(lambda x, sigma: x, torch.ones(1), diffusion.ddpm_sigmas(7)))
