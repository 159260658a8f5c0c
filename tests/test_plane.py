import numpy as np
import pytest
import torch

from helpers import plane


def test_denoising_in_two_dimensions_draws_each_level_and_the_way():
    points, way = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.zeros(5, 3, 2)
    figure = plane.denoising(points, lambda x, sigma: x * sigma, (0.5, 1.0), way)
    assert [axis.get_title(loc="left") for axis in figure.axes[:2]] == [f"denoised at σ = {s}" for s in (0.5, 1.0)]
    half, none = (axis.collections[0] for axis in figure.axes[:2])
    assert half.U[0] == pytest.approx(0.75)  # from -1.5 half the way to 0
    assert not any(none.U)
    assert len(figure.axes[2].lines) == 3 + 2 + 1  # the ways, their starts and ends, the points


def test_neon_is_shown_worse_as_it_is_and_at_its_best():
    points = torch.zeros(3, 2)
    samples = {weight: torch.full((4, 2), abs(weight - 2) / 2**0.5) for weight in range(-1, 5)}
    figure = plane.neon_panels(points, samples)
    titles = ["trained on its own samples", "the network", "stepped away, w = 2"]
    assert [axis.get_title(loc="left") for axis in figure.axes[:3]] == titles
    assert figure.alt.endswith("w = -1: 3.000, w = 0: 2.000, w = 1: 1.000, w = 2: 0.000, w = 3: 1.000, w = 4: 2.000.")
    shown = [axis.lines[0].get_xydata() for axis in figure.axes[:3]]
    for drawn, weight in zip(shown, (-1, 0, 2), strict=True):
        np.testing.assert_allclose(drawn, samples[weight])
    np.testing.assert_allclose(figure.axes[3].lines[0].get_ydata(), [3, 2, 1, 0, 1, 2], atol=1e-6)


def test_neon_on_a_spiral_gets_worse_one_way_and_better_the_other():
    angle = torch.linspace(1.5, 12.5, 400)
    spiral = torch.stack([angle.cos(), angle.sin()], dim=1) * angle[:, None] / 9
    threads = torch.get_num_threads()
    samples = plane.neon(spiral, weights=(-1, 0, 1))
    assert torch.get_num_threads() == threads
    worse, base, better = (torch.cdist(of, spiral).amin(dim=1).mean() for of in samples.values())
    assert better < base < worse
