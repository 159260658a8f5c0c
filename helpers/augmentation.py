"""Augmentation: images changed at random on their way into a step, so that a net never sees the same one twice.

Random numbers come from torch's global generator, which `batches.seed_step` makes a function of (seed, step).
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def mirror(images: Tensor) -> Tensor:
    """Every other image (B, C, H, W), by chance, with left and right changed over; any type, on its device."""
    chance = torch.rand(len(images), 1, 1, 1, device=images.device, dtype=torch.float32)
    return torch.where(chance < 0.5, images, images.flip(3))


def shuffle_channels(images: Tensor) -> Tensor:
    """Each image (B, 3, H, W) with its channels in a random order: another AddNIST image of the same label."""
    order = torch.rand(len(images), 3, device=images.device, dtype=torch.float32).argsort(dim=1)
    return images.gather(1, order[:, :, None, None].expand_as(images))


def jitter(
    images: Tensor,
    *,
    degrees: float = 0.0,
    scale: float = 0.0,
    shear: float = 0.0,
    shift: float = 0.0,
    bend: float = 0.0,
    stroke: float = 0.0,
) -> Tensor:
    """Each channel of each image changed at random, on its own; the bounds are those of uniform distributions.

    images: float32 or float64 (B, C, H, W) -> the same; TypeError for other types.
    stroke: first, half of the channels, by chance, go a share of the way, at most this, to their 3 × 3 maximum
        (thicker strokes) or minimum (thinner).
    scale: each axis, on its own, is scaled by 1 ± at most this.
    shear: slanted by up to about ± this many degrees,
    degrees: then turned by up to ± this many degrees,
    shift: then moved by up to ± this many pixels along each axis.
    bend: standard deviation, in pixels, of a displacement at 5 × 5 points, smooth and somewhat less in between: the
        elastic deformation of Simard et al. (2003).

    What comes in from outside is the images' least value, the background.
    """
    if images.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"expected float32 images, got {images.dtype}: pass them through batches.normalise first")
    if len(images) == 0:
        return images
    where, (b, c, h, w) = images.device, images.shape
    images = images.cpu() if where.type == "mps" else images  # which has no bicubic grid_sample
    like = {"device": images.device, "dtype": images.dtype}
    angle, size_x, size_y, slant, x, y, weight, coin = (torch.rand(8, b * c, **like) * 2 - 1).unbind()
    weight = (stroke * weight * (coin > 0)).view(b, c, 1, 1)
    thick, thin = F.max_pool2d(images, 3, 1, 1), -F.max_pool2d(-images, 3, 1, 1)
    images = images + weight.abs() * (torch.where(weight > 0, thick, thin) - images)
    # Where each pixel looks: first its place is scaled and slanted, then turned, then moved.
    cos, sin = (angle * math.radians(degrees)).cos(), (angle * math.radians(degrees)).sin()
    turn = torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)
    slope, zero = (slant * math.radians(shear)).tan(), torch.zeros_like(slant)
    stretch = torch.stack([1 + scale * size_x, slope, zero, 1 + scale * size_y], dim=1).view(-1, 2, 2)
    move = torch.stack([2 * shift / w * x, 2 * shift / h * y], dim=1)[:, :, None]
    frame = torch.tensor([[1.0, h / w], [w / h, 1.0]], **like)  # from pixels to -1…1: angles stay what they are
    grid = F.affine_grid(torch.cat([turn @ stretch * frame, move], dim=2), [b * c, 1, h, w], align_corners=False)
    # Bending: a displacement at 5 × 5 points, smooth in between: bicubic, as one matrix for each side (far faster).
    pixels = torch.tensor([2 / w, 2 / h], **like).view(2, 1, 1)
    points, corners = torch.randn(b * c, 2, 5, 5, **like) * bend * pixels, torch.eye(5, **like)[None, :, :, None]
    down, across = (F.interpolate(corners, size=(n, 1), mode="bicubic", align_corners=True)[0, :, :, 0] for n in (h, w))
    grid = grid + (down.T @ points @ across).permute(0, 2, 3, 1)
    # Bicubic, so that strokes stay as sharp as in images that nobody moved; it overshoots at edges, hence the clamp.
    darkest, brightest = images.aminmax()
    moved = F.grid_sample((images - darkest).reshape(b * c, 1, h, w), grid, mode="bicubic", align_corners=False)
    return (moved.view(b, c, h, w) + darkest).clamp(darkest, brightest).to(where)
