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
    torch.set_num_threads(2)  # so that one is another number
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    samples = plane.neon(spiral, weights=(-1, 0, 1e-6, 1))
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.rand(2), expected)  # nor are random numbers what they would not have been
    torch.set_num_threads(threads)
    torch.testing.assert_close(samples.pop(1e-6), samples[0], atol=1e-3, rtol=0)  # all from the same noises
    worse, base, better = (torch.cdist(of, spiral).amin(dim=1).mean() for of in samples.values())
    assert better < base < worse


def test_the_denoiser_in_the_plane_is_preconditioned_as_that_of_images():
    """With a variance of 0.5 a coordinate in place of σ_data²."""
    net = plane._Denoiser()
    x, sigma = torch.randn(5, 2), torch.tensor([0.01, 0.1, 0.5, 2.0, 80.0])
    seen = []
    net.net.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
    found = net(x, sigma)
    variance, column = 0.5, sigma[:, None]
    total = column**2 + variance
    given, out = seen[0]
    torch.testing.assert_close(given, torch.cat([x / total.sqrt(), column.log() / 4], dim=1))
    torch.testing.assert_close(found, variance / total * x + column * variance**0.5 / total.sqrt() * out)


def test_the_dots_called_noise_are_where_the_ways_begin():
    way = torch.arange(30.0).view(5, 3, 2) / 20
    figure = plane.denoising(torch.zeros(2, 2), lambda x, sigma: x, (0.5,), way)
    dots = {line.get_label(): line.get_xydata() for line in figure.axes[1].lines}
    np.testing.assert_allclose(dots["noise"], way[0])
    assert any(np.allclose(at, way[-1]) for name, at in dots.items() if name != "noise" and len(at) == 3)


def test_neons_samples_are_measured_by_their_distance_from_the_points_not_the_other_way_round():
    points = torch.stack([torch.linspace(-1, 1, 9), torch.zeros(9)], dim=1)
    on, off = torch.zeros(5, 2), torch.stack([torch.linspace(-1, 1, 5), torch.full((5,), 0.3)], dim=1)
    figure = plane.neon_panels(points, {-1: off, 0: off, 1: on})  # all on one of the points; near all, on none
    np.testing.assert_allclose(figure.axes[3].lines[0].get_ydata(), [0.3, 0.3, 0.0], atol=1e-6)


def test_the_seed_of_neon_is_that_of_its_training(monkeypatch):
    class Stop(Exception):
        pass

    def first_batch(seed):
        def stop(*of):
            raise Stop(randint(*of))

        with monkeypatch.context() as patched:
            patched.setattr(torch, "randint", stop)
            with pytest.raises(Stop) as stopped:
                plane.neon(torch.rand(50, 2), seed)
        return stopped.value.args[0]

    randint = torch.randint
    assert torch.equal(first_batch(3), first_batch(3))
    assert not torch.equal(first_batch(3), first_batch(4))
