"""A small class-conditional U-Net that spends its parameters at high resolution.

After Ronneberger et al. 2015 and Ho et al. 2020, with three savings: resampling without weights, one skip
connection a level, and one modulation projection shared by all blocks of a width (adaLN-single, Chen et al. 2023).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two 3×3 convolutions with a residual path; noise level and class enter as a scale and a shift."""

    def __init__(self, channels_in: int, channels: int):
        super().__init__()
        self.norm_in = nn.GroupNorm(8, channels_in)
        self.conv_in = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.norm_out = nn.GroupNorm(8, channels)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()
        self.gain = nn.Parameter(torch.ones(2, channels))  # this block's own share of the shared modulation
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """x (B, channels_in, H, W), modulation (B, 2, channels) -> (B, channels, H, W)"""
        scale, shift = (modulation * self.gain)[..., None, None].unbind(1)  # (B, C, 1, 1) each
        h = self.conv_in(F.silu(self.norm_in(x)))
        h = self.conv_out(F.silu(self.norm_out(h) * (1 + scale) + shift))
        return self.skip(x) + h


class Attention(nn.Module):
    """Multi-head self-attention over all positions, added to its input."""

    def __init__(self, channels: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).view(b, 3, self.heads, c // self.heads, h * w)
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # (B, heads, HW, C / heads) each
        out = F.scaled_dot_product_attention(q, k, v)
        return x + self.project(out.transpose(-1, -2).reshape(b, c, h, w))


class UNet(nn.Module):
    """Class-conditional U-Net; the defaults are the shipped network.

    forward(x, noise, labels): x float (B, 3, H, W) with H and W divisible by 4; noise float (B,), any monotone
    function of the noise level between about -2 and 2; labels int64 (B,) in 0…classes, where `classes` is the
    null label (no class), or a float class embedding (B, embedding) such as `net.class_embedding(labels)`.
    Returns float (B, 3, H, W).
    """

    def __init__(self, widths: tuple[int, ...] = (32, 72, 96), blocks: tuple[int, ...] = (1, 2, 2), classes: int = 100):
        super().__init__()
        self.classes = classes
        embedding = 128
        self.class_embedding = nn.Embedding(classes + 1, embedding)  # the last row is the null label
        nn.init.normal_(self.class_embedding.weight, std=0.5)
        self.register_buffer("frequencies", math.pi * torch.logspace(-2, 4, 32, base=2), persistent=False)
        self.noise_embedding = nn.Sequential(nn.Linear(64, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.modulation = nn.ModuleList(nn.Linear(embedding, 2 * w) for w in widths)

        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, (width, n) in enumerate(zip(widths, blocks, strict=True)):
            above = widths[max(level - 1, 0)]
            self.down.append(nn.ModuleList(Block(above if i == 0 else width, width) for i in range(n)))
            if level < len(widths) - 1:
                joined = width + widths[level + 1]
                self.up.append(nn.ModuleList(Block(joined if i == 0 else width, width) for i in range(n)))
        self.attention = Attention(widths[-1])
        self.norm = nn.GroupNorm(8, widths[0])
        self.head = nn.Conv2d(widths[0], 3, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor) -> Tensor:
        angles = noise[:, None] * self.frequencies  # (B, 32)
        embedding = self.noise_embedding(torch.cat([angles.sin(), angles.cos()], dim=1))
        embedding = embedding + (labels if labels.is_floating_point() else self.class_embedding(labels))
        embedding = F.silu(embedding)
        modulation = [layer(embedding).unflatten(1, (2, -1)) for layer in self.modulation]  # (B, 2, C) a level

        x, skips = self.stem(x), []
        for level, level_blocks in enumerate(self.down):
            x = F.avg_pool2d(x, 2) if level else x
            for block in level_blocks:
                x = block(x, modulation[level])
            skips.append(x)
        x = self.attention(skips.pop())
        for level in reversed(range(len(self.up))):
            x = torch.cat([F.interpolate(x, scale_factor=2.0), skips.pop()], dim=1)
            for block in self.up[level]:
                x = block(x, modulation[level])
        return self.head(F.silu(self.norm(x)))
