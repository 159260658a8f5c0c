import math

import pytest
import torch

from helpers import diffusion, interpolation
from helpers.interpolation import slerp
from helpers.unet import UNet


@pytest.fixture
def pair(rng):
    a, b = torch.randn(2, 6, 3, 4, 4, generator=rng)
    return a, b


def _norms(x):
    return x.flatten(1).norm(dim=1)


def test_endpoints_are_exact(pair):
    a, b = pair
    assert torch.equal(slerp(a, b, 0.0), a)
    assert torch.equal(slerp(a, b, 1.0), b)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.77])
def test_norm_is_kept_and_direction_reverses(pair, t):
    a, b = (x / _norms(x)[:, None, None, None] * 7 for x in pair)
    middle = slerp(a, b, t)
    torch.testing.assert_close(_norms(middle), torch.full((6,), 7.0))
    torch.testing.assert_close(middle, slerp(b, a, 1 - t))


def test_constant_angular_speed(pair):
    a, b = pair
    a, b = (x.double() / _norms(x.double())[:, None, None, None] for x in (a, b))
    path = torch.stack([slerp(a, b, t / 10) for t in range(11)]).flatten(2)
    angles = (path[:-1] * path[1:]).sum(dim=2).clamp(-1, 1).acos()
    torch.testing.assert_close(angles, angles[:1].expand_as(angles))
    whole = (a * b).flatten(1).sum(dim=1).acos()
    torch.testing.assert_close(angles.sum(dim=0), whole)


def test_quarter_circle():
    out = slerp(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 1 / 3)
    torch.testing.assert_close(out, torch.tensor([[math.cos(math.pi / 6), 0.5]]))


def test_one_position_a_sample_and_single_vectors(pair):
    a, b = pair
    ts = torch.linspace(0, 1, 6)
    rows = torch.cat([slerp(a[i : i + 1], b[i : i + 1], float(ts[i])) for i in range(6)])
    torch.testing.assert_close(slerp(a, b, ts), rows)
    torch.testing.assert_close(slerp(a[0].flatten(), b[0].flatten(), 0.3), slerp(a[:1], b[:1], 0.3).flatten())


def test_parallel_antipodal_and_zero_vectors(pair):
    a = pair[0]
    torch.testing.assert_close(slerp(a, a, 0.4), a)
    torch.testing.assert_close(slerp(a, 2 * a, 0.5), 1.5 * a)
    torch.testing.assert_close(slerp(a, torch.zeros_like(a), 0.25), 0.75 * a)
    half = slerp(a, -a, 0.5)
    torch.testing.assert_close(_norms(half), _norms(a))
    torch.testing.assert_close((half * a).flatten(1).sum(dim=1), torch.zeros(6), atol=1e-4, rtol=0)
    assert torch.equal(slerp(a, -a, 1.0), -a)


def test_continuity_also_next_to_the_special_cases(pair):
    a, b = pair
    nearly = a + 1e-7 * b
    torch.testing.assert_close(slerp(a, nearly, 0.5), (a + nearly) / 2)
    steps = torch.stack([slerp(a, b, t / 1000) for t in range(1001)]).flatten(2).diff(dim=0).norm(dim=2)
    assert float(steps.max() / steps.mean()) < 1.5


def test_refuses_two_shapes():
    with pytest.raises(ValueError, match="one shape"):
        slerp(torch.zeros(2, 3), torch.zeros(3, 2), 0.5)


def test_between_starts_and_ends_at_the_samples_themselves():
    torch.manual_seed(0)
    net = UNet((8, 16), (1, 1), 5)
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    denoiser = diffusion.Denoiser(net).eval()
    labels, path = (torch.tensor([0, 1]), torch.tensor([2, 3])), diffusion.karras_path(3)
    noises = diffusion.starting_noise(2, 0), diffusion.starting_noise(2, 1)
    frames = interpolation.between(denoiser, labels, noises, torch.linspace(0, 1, 4), path=path)
    assert frames.shape == (4, 2, 3, 32, 32)
    for end in (0, 1):
        alone = diffusion.sample(denoiser, labels[end], noise=noises[end], path=path)
        assert (frames[-end].int() - alone.int()).abs().max() <= 1
    again = interpolation.between(denoiser, labels, noises, torch.linspace(0, 1, 4), path=path)
    assert torch.equal(frames, again)


def test_step_lengths_and_roughness():
    frames = torch.zeros(3, 2, 3, 4, 4, dtype=torch.uint8)
    frames[1:, 0] = 10  # one jump of 10, then nothing
    frames[1, 1], frames[2, 1] = 5, 10  # two even steps
    lengths = interpolation.step_lengths(frames)
    assert lengths.tolist() == [[10, 5], [0, 5]]
    assert interpolation.roughness(lengths).tolist() == [2, 1]
