import math

import pytest
import torch

from helpers import data, diffusion, interpolation, solvers
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


def test_parallel_opposite_and_zero_vectors(pair):
    a = pair[0]
    torch.testing.assert_close(slerp(a, a, 0.4), a)
    torch.testing.assert_close(slerp(a, 2 * a, 0.5), 1.5 * a)
    torch.testing.assert_close(slerp(a, torch.zeros_like(a), 0.25), 0.75 * a)
    one_of_six = torch.cat([-a[:1], a[1:]])
    assert torch.equal(slerp(a, -a, 0.0), a)
    assert torch.equal(slerp(a, -a, 1.0), -a)
    for opposite in (-a, -2 * a, one_of_six):
        with pytest.raises(ValueError, match="between opposite vectors there is no shortest arc"):
            slerp(a, opposite, 0.5)


def test_continuity_also_next_to_the_special_cases(pair):
    a, b = pair
    nearly = a + 1e-7 * b
    torch.testing.assert_close(slerp(a, nearly, 0.5), (a + nearly) / 2)
    steps = torch.stack([slerp(a, b, t / 1000) for t in range(1001)]).flatten(2).diff(dim=0).norm(dim=2)
    assert float(steps.max() / steps.mean()) < 1.5


@pytest.mark.parametrize("way", [slerp, interpolation.lerp, interpolation.switch])
def test_ways_take_one_position_a_sample(pair, way):
    a, b = pair
    ts = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    rows = torch.cat([way(a[i : i + 1], b[i : i + 1], float(ts[i])) for i in range(6)])
    torch.testing.assert_close(way(a, b, ts), rows)
    assert torch.equal(way(a, b, ts)[0], a[0])
    assert torch.equal(way(a, b, ts)[5], b[5])


def test_lerp_loses_norm_where_slerp_does_not(rng):
    a, b = torch.randn(2, 4, 3, 32, 32, generator=rng)
    assert (_norms(interpolation.lerp(a, b, 0.5)) < 0.75 * _norms(a)).all()
    assert (_norms(slerp(a, b, 0.5)) > 0.97 * _norms(a)).all()


LABELS, PATH = (torch.tensor([0, 1]), torch.tensor([2, 3])), diffusion.karras_sigmas(3)
NOISES = diffusion.starting_noise(2, 0), diffusion.starting_noise(2, 1)


def test_between_starts_and_ends_at_the_samples_themselves(denoiser):
    frames = interpolation.between(denoiser, LABELS, NOISES, torch.linspace(0, 1, 4), sigmas=PATH)
    assert frames.shape == (4, 2, 3, 32, 32)
    for end in (0, 1):
        alone = diffusion.sample(denoiser, LABELS[end], noise=NOISES[end], sigmas=PATH)
        assert (frames[-end].int() - alone.int()).abs().max() <= 1
    again = interpolation.between(denoiser, LABELS, NOISES, torch.linspace(0, 1, 4), sigmas=PATH)
    assert torch.equal(frames, again)


def test_the_class_can_go_its_own_way(denoiser):
    positions = torch.tensor([0.4, 0.6])
    frames = interpolation.between(denoiser, LABELS, NOISES, positions, class_way=interpolation.switch, sigmas=PATH)
    for frame, t, label in zip(frames, (0.4, 0.6), LABELS, strict=True):
        alone = diffusion.sample(denoiser, label, noise=slerp(*NOISES, t), sigmas=PATH)
        assert (frame.int() - alone.int()).abs().max() <= 1


def test_each_pair_can_have_its_own_positions(denoiser):
    positions = torch.tensor([[0.0, 0.3], [0.5, 1.0]])
    frames = interpolation.between(denoiser, LABELS, NOISES, positions, sigmas=PATH)
    for p in (0, 1):
        alone = interpolation.between(
            denoiser, [x[p : p + 1] for x in LABELS], [x[p : p + 1] for x in NOISES], positions[:, p], sigmas=PATH
        )
        assert (frames[:, p].int() - alone[:, 0].int()).abs().max() <= 1


def test_fresh_noise_is_what_makes_frames_differ(denoiser):
    """Two frames at one position: with one noise for all they are the same image, with fresh noise they are not."""
    options = {"sigmas": diffusion.ddpm_sigmas(7), "solver": solvers.ddpm_steps}
    positions = torch.tensor([0.4, 0.4])
    shared, fresh = (
        interpolation.between(denoiser, LABELS, NOISES, positions, **options, **fresh)
        for fresh in ({}, {"fresh_noise": True})
    )
    assert torch.equal(shared[0], shared[1])
    assert not torch.equal(fresh[0], fresh[1])
    assert torch.equal(fresh[0], shared[0])
    options |= {"fresh_noise": True, "class_way": interpolation.switch}
    switched, stays = (  # before the middle, the class is that of the first end
        interpolation.between(denoiser, of, NOISES, positions, **options) for of in (LABELS, LABELS[:1] * 2)
    )
    assert torch.equal(switched, stays)
    assert not torch.equal(switched, fresh)


def test_the_added_noise_is_the_seeds_and_each_pairs_own(denoiser):
    """Shared: that of the seed in every frame; fresh: frame i takes that of seed + i; pair p always row p."""
    labels, noises = (
        (torch.tensor([1, 2]), torch.tensor([1, 2])),
        (diffusion.starting_noise(2, 0),) * 2,
    )  # nothing moves
    ddpm = {"sigmas": diffusion.ddpm_sigmas(7), "solver": solvers.ddpm_steps}
    shared, fresh = (
        interpolation.between(denoiser, labels, noises, [0.0, 0.5], seed=7, fresh_noise=each, **ddpm)
        for each in (False, True)
    )
    alone = [diffusion.sample(denoiser, labels[0], noise=noises[0], seed=seed, **ddpm) for seed in (7, 8)]
    for frames, expected in ((shared, [alone[0], alone[0]]), (fresh, alone)):
        difference = frames.float() - torch.stack(expected).float()
        assert difference.abs().max() <= 1  # rounding
    assert not torch.equal(alone[0], alone[1])


@pytest.mark.parametrize("way", [interpolation.slerp, interpolation.lerp])
def test_a_position_is_as_exact_as_the_vectors(way):
    a, b = torch.randn(2, 1, 50, dtype=torch.float64).unbind()
    assert torch.equal(way(a, b, 1 / 3), way(a, b, torch.tensor(1 / 3, dtype=torch.float64)))


def test_inversion_of_a_gaussian_is_exact_to_second_order():
    """Data N(0, 0.3²): up the noise levels and down again with Heun's steps, whose error falls fourfold a halving."""

    def there_and_back(steps):
        levels = torch.linspace(0.1, 1, steps + 1, dtype=torch.float64)
        x = torch.ones(1, dtype=torch.float64)
        for path in (levels, levels.flip(0)):
            *_, (x, _) = solvers.heun_steps(lambda x, s: x * 0.09 / (0.09 + s**2), x, path)
        up = torch.ones(1, dtype=torch.float64)
        *_, (up, _) = solvers.heun_steps(lambda x, s: x * 0.09 / (0.09 + s**2), up, levels)
        return abs(float(x) - 1), abs(float(up) - math.sqrt(1.09 / 0.1))

    errors = [there_and_back(n) for n in (20, 40, 80)]
    for coarse, fine in zip(errors[:-1], errors[1:], strict=True):
        assert fine[0] < coarse[0] / 3.5
        assert 1.8 < math.log2(coarse[1] / fine[1]) < 2.3


def test_inverted_images_are_drawn_again(denoiser):
    images, labels = (part[:3] for part in data.cifar100("", "test", "demo"))
    path = diffusion.karras_sigmas(30)
    noise = interpolation.invert(denoiser, images, labels % 5, path)
    assert noise.shape == images.shape
    again = diffusion.sample(denoiser, labels % 5, noise=noise, sigmas=path)
    assert float((again.float() - images.float()).square().mean()) < 1.0  # of 255²
    assert not torch.equal(again, diffusion.sample(denoiser, labels % 5, noise=noise.flip(0), sigmas=path))


def test_step_lengths_and_unevenness():
    points = torch.zeros(3, 2, 4)
    points[1:, 0] = 5  # one jump by (5, 5, 5, 5), then nothing
    points[1, 1], points[2, 1] = 2.5, 5  # two even steps
    lengths = interpolation.step_lengths(points)
    assert lengths.tolist() == [[10, 5], [0, 5]]
    assert interpolation.unevenness(lengths).tolist() == [2, 1]


def test_retiming_makes_steps_even():
    """A path that speeds up, x = t²: at the square roots of even spacing it is even."""
    t = torch.linspace(0, 1, 201)
    lengths = (t**2).diff()[:, None].expand(-1, 2)
    new = interpolation.retime(t, lengths, 6)
    assert new.shape == (6, 2)
    torch.testing.assert_close(new[:, 0], torch.linspace(0, 1, 6).sqrt(), atol=1e-4, rtol=0)
    assert float(interpolation.unevenness((new**2).diff(dim=0)).amax()) < 1.01
    own = torch.stack([t, t**2], dim=1)  # each path its own positions: the second is already even
    new = interpolation.retime(own, torch.stack([(t**2).diff(), (t**2).diff()], dim=1), 5)
    torch.testing.assert_close(new[:, 1], torch.linspace(0, 1, 5), atol=1e-4, rtol=0)


def test_retiming_leaves_even_and_motionless_paths_alone():
    t = torch.linspace(0, 1, 5)
    for lengths in (torch.ones(4, 1), torch.zeros(4, 1)):
        torch.testing.assert_close(interpolation.retime(t, lengths, 5)[:, 0], t)


def test_a_switch_is_a_up_to_the_middle_and_b_from_there():
    a, b = torch.zeros(5, 2), torch.ones(5, 2)
    t = torch.tensor([0.0, 0.49, 0.5, 0.51, 1.0])
    assert interpolation.switch(a, b, t)[:, 0].tolist() == [0, 0, 1, 1, 1]
    assert interpolation.switch(a, b, 0.5).sum() == 10


def test_smoothness_of_paths_whose_lengths_are_known():
    there_and_back = torch.tensor([[[0.0], [0.0]], [[1.0], [3.0]], [[0.0], [4.0]]])  # (3 frames, 2 paths, 1)
    found = interpolation.smoothness(there_and_back, every=(1, 2))
    assert {count: [float(v) for v in of] for count, of in found["length"].items()} == {
        3: [3.0, pytest.approx(2**0.5)],  # 2 and 4
        2: [2.0, pytest.approx(8**0.5)],  # 0 and 4
    }
    assert found["each"].tolist() == [2.0, 4.0]
    assert list(interpolation.smoothness(there_and_back)["length"]) == [3]
    assert [float(v) for v in found["unevenness"]] == [1.25, pytest.approx(0.125**0.5)]  # 1, and 3 over 2


def test_psnr():
    black, near = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    near[1] += 51
    assert interpolation.psnr(black, near).tolist() == pytest.approx([78.13, 20 * 0.69897], abs=0.01)


@pytest.mark.parametrize("way", [interpolation.slerp, interpolation.lerp, interpolation.switch])
def test_ways_refuse_what_has_no_way(way):
    whole = torch.zeros(2, 3, dtype=torch.int64)
    for a, b in ((torch.zeros(2, 3), torch.zeros(1, 3)), (torch.zeros(2, 3), torch.zeros(3, 2)), (whole, whole)):
        with pytest.raises(ValueError, match="two float tensors of one shape"):
            way(a, b, 0.5)
    for t in (torch.zeros(3), torch.zeros(2, 2)):
        with pytest.raises(ValueError, match="a position, or one for each of 2 samples"):
            way(torch.zeros(2, 3), torch.ones(2, 3), t)


def test_between_invert_and_psnr_refuse_what_they_would_misread():
    denoiser, noises = diffusion.Denoiser(UNet((8, 8, 8))), [diffusion.starting_noise(2, seed) for seed in (0, 1)]
    images, labels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([1, 2])
    for positions in (torch.tensor(0.5), [], torch.zeros(2, 2, 2), [0, 50, 100]):
        with pytest.raises(ValueError, match=r"positions must be \(F,\) or \(F, P\)"):
            interpolation.between(denoiser, (labels, labels), noises, positions)
    with pytest.raises(ValueError, match="labels must be in 0…99"):
        interpolation.between(denoiser, (labels, [1, 200]), noises, [0.5])
    with pytest.raises(ValueError, match="labels must be in 0…99"):
        interpolation.invert(denoiser, images, [1, 200])
    with pytest.raises(ValueError, match=r"labels int64 \(2,\)"):  # one label would be that of both
        interpolation.invert(denoiser, images, labels[:1], diffusion.karras_sigmas(2))
    for sigmas in (diffusion.karras_sigmas(3).flip(0), diffusion.karras_sigmas(3)[:-1]):
        with pytest.raises(ValueError, match="sigmas must be noise levels that fall"):
            interpolation.invert(denoiser, images, labels, sigmas)
    with pytest.raises(ValueError, match="two noise levels or more above 0"):
        interpolation.invert(denoiser, images, labels, [80.0, 0.0])
    for a, b in ((torch.zeros(2, 3), torch.zeros(2, 3)), (images, images[:1])):
        with pytest.raises(ValueError, match="two tensors of uint8 images"):
            interpolation.psnr(a, b)


def test_nothing_is_interpolated_to_nothing():
    nothing = torch.empty(0, 3, 32, 32)
    for way in (slerp, interpolation.lerp, interpolation.switch):
        assert way(nothing, nothing, 0.5).shape == nothing.shape
        assert way(nothing, nothing, torch.empty(0)).shape == nothing.shape


def test_unevenness_is_of_the_frames_that_the_first_stride_leaves():
    points = torch.tensor([0.0, 1.0, 4.0, 5.0, 8.0])[:, None, None].expand(
        -1, 2, -1
    )  # steps of 1, 3, 1, 3; every second: 4, 4
    assert float(interpolation.smoothness(points, every=(2, 1))["unevenness"][0]) == 1
    assert float(interpolation.smoothness(points, every=(1, 2))["unevenness"][0]) == 1.5


@pytest.mark.parametrize("size", [1e-12, 1e-6, 1e6])
def test_vectors_of_any_size_go_the_same_way(pair, size):
    a, b = (of.double() for of in pair)
    torch.testing.assert_close(slerp(size * a, size * b, 0.3) / size, slerp(a, b, 0.3))
