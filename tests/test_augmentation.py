import math

import pytest
import torch
from torch.nn import functional as F

from helpers import augmentation, batches, data


def test_jitter_moves_each_channel_on_its_own_and_no_more_than_said():
    blob = torch.exp(-((torch.arange(28) - 13.5) ** 2) / 8)
    images = (2.4 * blob[:, None] * blob - 0.4).expand(50, 3, 28, 28)
    torch.testing.assert_close(augmentation.jitter(images), images)
    torch.manual_seed(0)
    moved = augmentation.jitter(images, shift=3.0) + 0.4
    assert float(moved.amin()) == pytest.approx(0, abs=1e-5)
    mass = moved.sum(dim=(2, 3))
    torch.testing.assert_close(mass, torch.full_like(mass, 2.4 * blob.sum() ** 2), rtol=5e-3, atol=0)
    centre = (moved.sum(dim=2) * torch.arange(28)).sum(dim=2) / mass - 13.5  # (50, 3): how far right
    assert 2.5 < float(centre.abs().amax()) <= 3.001
    assert float((centre[:, 0] - centre[:, 1]).abs().mean()) > 1
    turned = augmentation.jitter(images, degrees=20, scale=0.2)
    assert not torch.allclose(turned, images)
    torch.testing.assert_close(turned.flip(2, 3), turned)  # about the centre


def test_jitter_keeps_strokes_sharp():
    images = batches.normalise(data.addnist("", "test", "demo")[0][:50])
    torch.manual_seed(0)
    moved = augmentation.jitter(images, shift=2.0)
    edges = [float((x[..., 1:] - x[..., :-1]).square().mean()) for x in (moved, images)]
    assert edges[0] / edges[1] > 0.8  # interpolated bilinearly, they lose more than that


def test_bending_is_smooth_and_as_large_as_said():
    ramp = torch.arange(28.0).expand(200, 3, 28, 28)  # its value says where a pixel came from
    torch.manual_seed(0)
    moved = (augmentation.jitter(ramp, bend=0.5) - ramp)[:, :, 6:22, 6:22]
    assert 0.3 < float(moved.std()) <= 0.5
    assert float((moved[..., 1:] - moved[..., :-1]).std()) < 0.12
    assert abs(float(torch.corrcoef(moved[:, :2, 8, 8].T)[0, 1])) < 0.25  # each channel on its own


def test_shuffled_channels_are_the_same_three_and_every_order_occurs():
    images = torch.arange(3, dtype=torch.uint8).view(1, 3, 1, 1).expand(6000, 3, 2, 2)
    torch.manual_seed(0)
    orders, counts = augmentation.shuffle_channels(images)[:, :, 0, 0].unique(dim=0, return_counts=True)
    assert orders.tolist() == [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
    assert counts.min() > 850


@pytest.mark.parametrize(("weight", "coin"), [(0.8, 0.2), (-0.8, 0.2), (0.8, -0.2)])
def test_strokes_come_first_then_scale_and_slant_then_turn_then_move(monkeypatch, weight, coin):
    """Against the affine map written out, with random numbers that are known."""
    angle, size_x, size_y, slant, x, y = 1.0, 0.5, -1.0, -0.5, 0.3, -0.6
    drawn = (torch.tensor([angle, size_x, size_y, slant, x, y, weight, coin]) + 1)[:, None] / 2
    monkeypatch.setattr(torch, "rand", lambda *_, **__: drawn)
    image = torch.rand_like(torch.zeros(1, 1, 28, 28)) - 0.4
    cos, sin = math.cos(math.radians(30)), math.sin(math.radians(30))
    sx, sy, k = 1 + 0.4 * size_x, 1 + 0.4 * size_y, math.tan(math.radians(20 * slant))
    rows = [cos * sx, cos * k - sin * sy, 2 * 3 / 28 * x], [sin * sx, sin * k + cos * sy, 2 * 3 / 28 * y]
    theta = torch.tensor([rows])
    grid = F.affine_grid(theta, [1, 1, 28, 28], align_corners=False)
    pooled = F.max_pool2d(image, 3, 1, 1) if weight > 0 else -F.max_pool2d(-image, 3, 1, 1)
    pen = image + 0.5 * 0.8 * (pooled - image) if coin > 0 else image
    low, high = pen.aminmax()
    expected = F.grid_sample(pen - low, grid, mode="bicubic", align_corners=False) + low
    moved = augmentation.jitter(image, degrees=30, scale=0.4, shear=20, shift=3, stroke=0.5)
    torch.testing.assert_close(moved, expected.clamp(low, high))


def test_bending_is_bicubic_between_its_points():
    images = torch.rand(2, 3, 20, 28)
    torch.manual_seed(0)
    bent = augmentation.jitter(images, bend=2.0)
    torch.manual_seed(0)
    torch.rand(8, 6)  # angles, sizes, slants, shifts, strokes
    points = 2.0 * torch.randn(6, 2, 5, 5) * torch.tensor([2 / 28, 2 / 20]).view(2, 1, 1)  # pixels across and down
    grid = F.affine_grid(torch.eye(2, 3).expand(6, 2, 3), [6, 1, 20, 28], align_corners=False)
    grid = grid + F.interpolate(points, size=(20, 28), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    darkest = images.min()
    expected = F.grid_sample((images - darkest).view(6, 1, 20, 28), grid, mode="bicubic", align_corners=False)
    torch.testing.assert_close(bent, (expected.view_as(images) + darkest).clamp(darkest, images.max()))


def test_strokes_grow_thicker_and_thinner_by_no_more_than_said():
    line = torch.full((600, 3, 9, 9), -0.4)
    line[..., 3:6] = 0.6  # three pixels wide: five at most, one at least
    torch.manual_seed(0)
    found = augmentation.jitter(line, stroke=0.6) + 0.4
    torch.testing.assert_close(found, found[..., :1, :].expand_as(found))
    outer, edge, core = found[..., 0, 2:3], found[..., 0, 3:4], found[..., 0, 4:5]
    torch.testing.assert_close(core, torch.ones_like(core))
    torch.testing.assert_close(found[..., 0, 6:7], outer)
    thicker, thinner = outer > 1e-5, edge < 1 - 1e-5
    assert not (thicker & thinner).any()
    assert (found[..., 0, [0, 1, 7, 8]].abs() < 1e-5).all()
    for share, much in ((thicker, outer[thicker]), (thinner, 1 - edge[thinner])):
        assert 0.22 < float(share.float().mean()) < 0.28  # the other half stay as they are
        assert 0.58 < float(much.max()) <= 0.6 + 1e-5
        assert 0.27 < float(much.mean()) < 0.33  # uniform
    changed = (thicker | thinner)[..., 0].float()  # (600, 3): each channel on its own
    assert abs(float(torch.corrcoef(changed[:, :2].T)[0, 1])) < 0.12


def test_images_keep_their_type():
    images = torch.rand(2, 3, 28, 28, dtype=torch.float64)
    assert augmentation.jitter(images, degrees=9.0, stroke=0.5, bend=1.0).dtype == torch.float64


def test_bytes_to_jitter_are_refused():
    with pytest.raises(TypeError, match="normalise first"):
        augmentation.jitter(torch.zeros(4, 3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_too_coarse_a_type_to_jitter_is_refused(dtype):
    with pytest.raises(TypeError, match="expected float32 images"):
        augmentation.jitter(torch.zeros(4, 3, 8, 8, dtype=dtype))


def test_any_layout_and_no_images_at_all_can_be_augmented():
    images = torch.rand(4, 3, 8, 8)
    for augment in (augmentation.mirror, augmentation.shuffle_channels, lambda x: augmentation.jitter(x, bend=1.0)):
        torch.manual_seed(0)
        expected = augment(images)
        torch.manual_seed(0)
        assert torch.equal(augment(images.to(memory_format=torch.channels_last)), expected)
        assert augment(images[:0]).shape == (0, 3, 8, 8)


def test_half_the_images_are_mirrored_and_none_is_changed_otherwise():
    images = torch.randint(0, 256, (10_000, 3, 2, 4), dtype=torch.uint8)
    torch.manual_seed(0)
    found = augmentation.mirror(images)
    assert found.dtype == torch.uint8
    flipped = (found == images.flip(3)).all(dim=(1, 2, 3))
    assert 4850 < int(flipped.sum()) < 5150
    assert torch.equal(found[~flipped], images[~flipped])


@pytest.mark.parametrize(("height", "width"), [(32, 64), (64, 32), (48, 48)])
@pytest.mark.parametrize("row", [0, 3])
def test_images_of_any_shape_are_turned_and_slanted_by_the_angles_asked(monkeypatch, height, width, row):
    """A soft spot beside the middle, against where the angles themselves send it, in pixels."""
    drawn = torch.full((8, 1), 0.5)  # which changes nothing
    drawn[row] = 1.0  # but for the angle (row 0) or the slant
    monkeypatch.setattr(torch, "rand", lambda *_, **__: drawn)
    sides = (torch.arange(side) - (side - 1) / 2 for side in (height, width))
    y, x = torch.meshgrid(*sides, indexing="ij")

    def spot(x, y):
        return torch.exp(-((x - 3) ** 2) / 40 - (y + 4) ** 2 / 30)

    cos, sin = math.cos(math.radians(30)), math.sin(math.radians(30))
    if row == 0:
        moved = augmentation.jitter(spot(x, y)[None, None], degrees=30)
        expected = spot(x * cos - y * sin, x * sin + y * cos)
    else:
        moved = augmentation.jitter(spot(x, y)[None, None], shear=30)
        expected = spot(x + y * math.tan(math.radians(30)), y)
    middle = slice(height // 2 - 8, height // 2 + 8), slice(width // 2 - 8, width // 2 + 8)
    assert float((moved[0, 0] - expected)[middle].abs().max()) < 0.02


@pytest.mark.parametrize(("row", "across", "down"), [(4, 3, 0), (5, 0, 3)])
def test_images_of_any_shape_are_moved_by_the_pixels_asked(monkeypatch, row, across, down):
    drawn = torch.full((8, 1), 0.5)
    drawn[row] = 1.0
    monkeypatch.setattr(torch, "rand", lambda *_, **__: drawn)
    image = torch.zeros(1, 1, 12, 40)
    image[..., 6, 20] = 1.0
    moved = augmentation.jitter(image, shift=3.0)
    assert moved[0, 0].argmax() == (6 - down) * 40 + 20 - across
    assert float(moved.amax()) == pytest.approx(1, abs=1e-4)
