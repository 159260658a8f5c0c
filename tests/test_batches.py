import math

import numpy as np
import pytest
import torch

from helpers import batches, data


def test_batch_is_a_function_of_seed_and_step():
    images, labels = torch.arange(10), torch.arange(10)
    epoch = torch.cat([batches.batch(images, labels, 3, 7, step)[0] for step in range(3)])
    assert len(epoch.unique()) == 9  # each at most once an epoch
    assert torch.equal(batches.batch(images, labels, 3, 7, 1)[0], epoch[3:6])
    following = torch.cat([batches.batch(images, labels, 3, 7, step)[0] for step in range(3, 6)])
    assert not torch.equal(epoch, following)
    assert not torch.equal(batches.batch(images, labels, 3, 8, 1)[0], epoch[3:6])
    with pytest.raises(ValueError, match="1…10"):
        batches.batch(images, labels, 11, 0, 0)


def test_seed_step_repeats_the_noise():
    batches.seed_step(3, 14)
    first = torch.randn(4)
    batches.seed_step(3, 15)
    other = torch.randn(4)
    batches.seed_step(3, 14)
    assert torch.equal(first, torch.randn(4))
    assert not torch.equal(first, other)


def test_jitter_moves_each_channel_on_its_own_and_no_more_than_said():
    blob = torch.exp(-((torch.arange(28) - 13.5) ** 2) / 8)
    images = (2.4 * blob[:, None] * blob - 0.4).expand(50, 3, 28, 28)
    torch.testing.assert_close(batches.jitter(images), images)
    torch.manual_seed(0)
    moved = batches.jitter(images, shift=3.0) + 0.4
    assert float(moved.amin()) == pytest.approx(0, abs=1e-5)
    mass = moved.sum(dim=(2, 3))
    torch.testing.assert_close(mass, torch.full_like(mass, 2.4 * blob.sum() ** 2), rtol=5e-3, atol=0)
    centre = (moved.sum(dim=2) * torch.arange(28)).sum(dim=2) / mass - 13.5  # (50, 3): how far right
    assert 2.5 < float(centre.abs().amax()) <= 3.001
    assert float((centre[:, 0] - centre[:, 1]).abs().mean()) > 1
    turned = batches.jitter(images, degrees=20, scale=0.2)
    assert not torch.allclose(turned, images)
    torch.testing.assert_close(turned.flip(2, 3), turned)  # about the centre


def test_jitter_keeps_strokes_sharp():
    images = batches.normalise(data.addnist("", "test", "demo")[0][:50])
    torch.manual_seed(0)
    moved = batches.jitter(images, shift=2.0)
    edges = [float((x[..., 1:] - x[..., :-1]).square().mean()) for x in (moved, images)]
    assert edges[0] / edges[1] > 0.8  # interpolated bilinearly, they lose more than that


def test_bending_is_smooth_and_as_large_as_said():
    ramp = torch.arange(28.0).expand(200, 3, 28, 28)  # its value says where a pixel came from
    torch.manual_seed(0)
    moved = (batches.jitter(ramp, bend=0.5) - ramp)[:, :, 6:22, 6:22]
    assert 0.3 < float(moved.std()) <= 0.5
    assert float((moved[..., 1:] - moved[..., :-1]).std()) < 0.12
    assert abs(float(torch.corrcoef(moved[:, :2, 8, 8].T)[0, 1])) < 0.25  # each channel on its own


def test_shuffled_channels_are_the_same_three_and_every_order_occurs():
    images = torch.arange(3, dtype=torch.uint8).view(1, 3, 1, 1).expand(6000, 3, 2, 2)
    torch.manual_seed(0)
    orders, counts = batches.shuffle_channels(images)[:, :, 0, 0].unique(dim=0, return_counts=True)
    assert orders.tolist() == [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
    assert counts.min() > 850


def test_normalise_is_the_official_one():
    images = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2)
    assert batches.normalise(images).flatten().tolist() == pytest.approx([-0.1307 / 0.3081, (1 - 0.1307) / 0.3081])


def test_pixels_survive_the_round_trip():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(batches.to_uint8(batches.to_float(pixels)), pixels)
    assert batches.to_uint8(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]
    with pytest.raises(ValueError, match="NaN"):
        batches.to_uint8(torch.tensor([0.0, torch.nan]))


def test_floats_are_refused_where_bytes_are_meant():
    with pytest.raises(TypeError, match="uint8"):
        batches.normalise(torch.rand(1, 3, 28, 28))
    with pytest.raises(TypeError, match="uint8"):
        batches.to_float(torch.rand(1, 3, 32, 32))
    with pytest.raises(TypeError, match="expected float images"):
        batches.to_uint8(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_generators_differ_wherever_seed_or_index_do():
    seen = {batches.generator(seed, index).initial_seed() for seed in range(30) for index in range(30)}
    assert len(seen) == 900
    batches.seed_step(3, 5)
    assert torch.equal(torch.rand(4), torch.rand(4, generator=batches.generator(3, 5)))


def test_a_channel_is_scaled_first_then_turned_then_moved(monkeypatch):
    """Against the affine map written out, with random numbers that are known."""
    angle, size_x, size_y, x, y = 1.0, 0.5, -1.0, 0.3, -0.6
    drawn = (torch.tensor([angle, size_x, size_y, x, y]) + 1)[:, None] / 2
    monkeypatch.setattr(torch, "rand", lambda *_, **__: drawn)
    image = torch.rand_like(torch.zeros(1, 1, 28, 28))
    cos, sin = math.cos(math.radians(30)), math.sin(math.radians(30))
    sx, sy = 1 + 0.4 * size_x, 1 + 0.4 * size_y
    theta = torch.tensor([[[cos * sx, -sin * sy, 2 * 3 / 28 * x], [sin * sx, cos * sy, 2 * 3 / 28 * y]]])
    grid = torch.nn.functional.affine_grid(theta, [1, 1, 28, 28], align_corners=False)
    low, high = image.aminmax()
    expected = torch.nn.functional.grid_sample(image - low, grid, mode="bicubic", align_corners=False) + low
    moved = batches.jitter(image, degrees=30, scale=0.4, shift=3)
    torch.testing.assert_close(moved, expected.clamp(low, high))


def test_seeds_may_be_numpys_numbers():
    assert batches.generator(np.int32(10**9), np.int64(3)).initial_seed() == 10**9 * 1_000_003 + 3


def test_a_batch_of_other_labels_or_an_earlier_step_and_bytes_to_jitter_are_refused():
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    for labels, step in ((torch.arange(9), 0), (torch.arange(4), -1)):
        with pytest.raises(ValueError, match="a label for each of 4 images and a step from 0"):
            batches.batch(images, labels, 2, 0, step)
    with pytest.raises(TypeError, match="normalise first"):
        batches.jitter(images)
