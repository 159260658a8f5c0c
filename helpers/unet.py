"""A small class-conditional U-Net that uses its weights more than once.

After Ronneberger et al. 2015 and Ho et al. 2020, with four savings: resampling without weights, one skip connection
a level, one modulation projection shared by all blocks of a width (adaLN-single, Chen et al. 2023), and wide blocks
that are used again and again at low resolution, where a loop costs little time (weights shared over depth: Dehghani
et al. 2019, Universal Transformers).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.diffusion import Denoiser


class GroupNorm(nn.GroupNorm):
    """torch.nn.GroupNorm. Compiled for a GPU, it sums over each channel first, as channels-last memory lies."""

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.compiler.is_compiling() and x.is_cuda):
            return super().forward(x)
        b, c, groups = *x.shape[:2], self.num_groups
        x = x.float()
        mean, square = (
            each.mean(dim=(2, 3)).view(b, groups, -1).mean(dim=2, keepdim=True) for each in (x, x.square())
        )  # (B, groups, 1)
        spread = (square - mean.square()).clamp_min(0).add(self.eps).rsqrt()
        mean, spread = (each.expand(b, groups, c // groups).reshape(b, c) for each in (mean, spread))
        scale = spread * self.weight  # (B, C)
        return x * scale[..., None, None] + (self.bias - mean * scale)[..., None, None]


class Block(nn.Module):
    """Two 3×3 convolutions with a residual path, used `loops` times.

    `modulation`, made of noise level and class, scales and shifts the middle. All loops share
    the convolutions' weights. Each has, per channel, its own gains: for scale, for shift, and
    for what it adds.
    """

    def __init__(self, channels_in: int, channels: int, loops: int = 1):
        super().__init__()
        self.norm_in = GroupNorm(8, channels_in)
        self.conv_in = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.norm_out = GroupNorm(8, channels)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)
        same = channels_in == channels
        self.skip = nn.Identity() if same else nn.Conv2d(channels_in, channels, 1)
        self.gain = nn.Parameter(torch.ones(loops, 2, channels))  # of the shared modulation
        self.gain_out = nn.Parameter(torch.ones(loops, channels, 1, 1)) if loops > 1 else None
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, x: Tensor, modulation: Tensor, loop: int = 0) -> Tensor:
        """x (B, channels_in, H, W), modulation (B, 2, channels) -> (B, channels, H, W)"""
        scale, shift = (modulation * self.gain[loop])[..., None, None].unbind(1)  # (B, C, 1, 1)
        h = self.conv_in(F.silu(self.norm_in(x)))
        h = self.conv_out(F.silu(self.norm_out(h) * (1 + scale) + shift))
        if self.gain_out is not None:
            h = h * self.gain_out[loop].to(h.dtype)
        return self.skip(x) + h


class Attention(nn.Module):
    """Multi-head self-attention over all positions, added to its input."""

    def __init__(self, channels: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.norm = GroupNorm(8, channels)
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
    """Class-conditional U-Net; the defaults are the looped U-Net, which is shipped, `plain` the plain one.

    widths: channels of each level, multiples of 8 (else ValueError); level l works at 1 / 2^l of the resolution.
    blocks: how many a level has on the way down, and as many on the way up, but for the last; one unless given.
    classes: the number of them; the label `classes` is the null label (no class).
    loops: how many times in a row the blocks of each level are used (default: 1, 2, 3, …).
    transitions: whether a 1×1 convolution carries the channels from level to level, so that every block has one width
        and can be used again; else the first block of a level does.

    forward(x, noise, labels) -> float (B, 3, H, W), with
    x: float (B, 3, H, W), H and W divisible by 2^(levels - 1).
    noise: float (B,), any monotone function of the noise level between about -2 and 2.
    labels: int64 (B,) in 0…classes, or class embeddings float (B, E), such as `net.class_embedding(labels)`.
    """

    def __init__(
        self,
        widths: tuple[int, ...] = (48, 96, 128),
        blocks: tuple[int, ...] | None = None,
        classes: int = 100,
        *,
        loops: tuple[int, ...] | None = None,
        transitions: bool = True,
    ):
        super().__init__()
        self.classes, self.widths = classes, widths
        self.loops = loops = loops or tuple(range(1, len(widths) + 1))
        blocks = blocks or (1,) * len(widths)
        _check_levels(widths, blocks, loops, transitions)
        # Embeddings: noise level and class -> a scale and a shift for each channel of a level.
        embedding = 128
        self.class_embedding = nn.Embedding(classes + 1, embedding)  # the last row is the null label
        nn.init.normal_(self.class_embedding.weight, std=0.5)
        self.noise_embedding = nn.Sequential(nn.Linear(64, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.modulation = nn.ModuleList(nn.Linear(embedding, 2 * w) for w in widths)

        def enter(channels_in: int, width: int) -> nn.Module:
            return nn.Conv2d(channels_in, width, 1) if transitions and channels_in != width else nn.Identity()

        def level_blocks(channels_in: int, level: int) -> nn.ModuleList:
            width, first = widths[level], widths[level] if transitions else channels_in
            return nn.ModuleList(Block(width if i else first, width, loops[level]) for i in range(blocks[level]))

        # Down: level 0 … last.
        above = [widths[max(level - 1, 0)] for level in range(len(widths))]
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        self.enter_down = nn.ModuleList(map(enter, above, widths))
        self.down = nn.ModuleList(level_blocks(channels, level) for level, channels in enumerate(above))
        # Up: level last - 1 … 0, each joined by what went down there.
        joined = [width + below for width, below in zip(widths[:-1], widths[1:], strict=True)]
        self.enter_up = nn.ModuleList(map(enter, joined, widths[:-1]))
        self.up = nn.ModuleList(level_blocks(channels, level) for level, channels in enumerate(joined))
        # Middle: attention after each loop of the last level. Then out.
        self.attention = Attention(widths[-1])
        self.norm = GroupNorm(8, widths[0])
        self.head = nn.Conv2d(widths[0], 3, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor) -> Tensor:
        self._check(x, labels)
        x, noise = (part.to(next(self.parameters()).dtype) for part in (x, noise))
        # Embeddings.
        angles = noise[:, None] * frequencies(noise)  # (B, 32)
        embedding = self.noise_embedding(torch.cat([angles.sin(), angles.cos()], dim=1))
        embedding = embedding + (labels if labels.is_floating_point() else self.class_embedding(labels))
        embedding = F.silu(embedding)
        modulation = [layer(embedding).unflatten(1, (2, -1)) for layer in self.modulation]  # (B, 2, C) a level
        # Down, the middle at its end.
        x, skips = self.stem(x), []
        for level, level_blocks in enumerate(self.down):
            x = self.enter_down[level](F.avg_pool2d(x, 2) if level else x)
            x = self._loops(x, level_blocks, level, modulation[level])
            skips.append(x)
        # Up.
        x = skips.pop()
        for level, level_blocks in reversed(list(enumerate(self.up))):
            x = self.enter_up[level](torch.cat([F.interpolate(x, scale_factor=2.0), skips.pop()], dim=1))
            x = self._loops(x, level_blocks, level, modulation[level])
        return self.head(F.silu(self.norm(x)))

    def _check(self, x: Tensor, labels: Tensor) -> None:
        multiple, width = 2 ** (len(self.widths) - 1), self.class_embedding.embedding_dim
        if x.ndim != 4 or x.shape[1] != 3 or any(side % multiple for side in x.shape[2:]):
            raise ValueError(f"expected images (B, 3, H, W), H and W multiples of {multiple}, got {tuple(x.shape)}")
        count = x.shape[0]
        if labels.shape != ((count, width) if labels.is_floating_point() else (count,)):
            expected = f"labels int64 ({count},) or class embeddings float ({count}, {width})"
            raise ValueError(f"expected {expected}, got {labels.dtype} {tuple(labels.shape)}")

    def _loops(self, x: Tensor, blocks: nn.ModuleList, level: int, modulation: Tensor) -> Tensor:
        """The blocks of a level, loops[level] times in a row; in the middle, attention ends each loop."""
        for loop in range(self.loops[level]):
            for block in blocks:
                x = block(x, modulation, loop)
            if level == len(self.loops) - 1:
                x = self.attention(x)
        return x


def frequencies(like: Tensor) -> Tensor:
    """Those by which the net sees the noise level, (32,), π/4 … 16π. Made anew each time: a buffer could be lost."""
    return math.pi * torch.logspace(-2, 4, 32, base=2, dtype=like.dtype, device=like.device)


def _check_levels(widths: tuple, blocks: tuple, loops: tuple, transitions: bool) -> None:
    if any(width % 8 for width in widths) or not len(widths) == len(blocks) == len(loops):
        raise ValueError(f"widths must be multiples of 8, as many as blocks and loops: {widths}, {blocks}, {loops}")
    if max(loops) > 1 and not transitions:
        raise ValueError("loops need transitions: a block that feeds itself gives as many channels as it takes")


def plain(widths: tuple[int, int, int] = (32, 72, 96), classes: int = 100) -> UNet:
    """The same without loops and transitions: narrower, with more blocks. 936,275 parameters."""
    return UNet(widths, (1, 2, 2), classes, loops=(1, 1, 1), transitions=False)


NETWORKS = {"looped": UNet, "plain": plain}  # by their names in settings and cards
# A fixed input: a denoiser's answer to it, kept in the card, shows whether its code has changed since its training.
PROBE = torch.linspace(-2, 2, 3 * 32 * 32).view(1, 3, 32, 32), torch.tensor([1.0]), torch.tensor([0])


def build_denoiser(settings: dict, device: torch.device | str = "cpu") -> Denoiser:
    """A new, untrained denoiser, as a run's settings ("network", "widths", "prediction") describe it."""
    net = NETWORKS[settings["network"]](tuple(settings["widths"]))
    return Denoiser(net, settings["prediction"]).to(device, torch.float32, memory_format=torch.channels_last)
