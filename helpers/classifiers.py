"""Two nets for AddNIST: the report's, and one that reads each digit and adds them up."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _check(x: Tensor) -> None:
    if x.ndim != 4 or x.shape[1:] != (3, 28, 28):
        raise ValueError(f"expected images (B, 3, 28, 28), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"expected normalised float images, got {x.dtype}: pass them through data.normalise first")


class PaperClassifier(nn.Module):
    """The report's net, 98,740 parameters: four 3×3 convolutions, three pools, two linear layers.

    forward(x): float (B, 3, 28, 28) normalised by `data.normalise` -> logits (B, 20). Raises ValueError or TypeError
    on other shapes and types.
    """

    def __init__(self):
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),   # (B, 16, 14, 14)
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),  # (B, 32, 7, 7)
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),  # (B, 64, 3, 3)
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),                   # (B, 64, 3, 3)
        )  # fmt: skip
        self.linear = nn.Sequential(nn.Flatten(), nn.Linear(576, 64), nn.ReLU(), nn.Linear(64, 20))

    def forward(self, x: Tensor) -> Tensor:
        _check(x)
        return self.linear(self.convolutions(x))


class DigitSumClassifier(nn.Module):
    """One small digit reader shared by the three channels, and an exact sum: 79,730 parameters.

    The label is the sum of three digits minus 1, and the distribution of a sum is the convolution of the digits'
    distributions, which needs no parameters. Only the sum is ever labelled; reading emerges.

    forward(x): float (B, 3, 28, 28) normalised by `data.normalise` -> log-probabilities (B, 20), float32.
    """

    def __init__(self):
        super().__init__()

        def layer(channels_in: int, channels: int) -> list[nn.Module]:
            return [nn.Conv2d(channels_in, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]

        self.reader = nn.Sequential(
            *layer(1, 24), *layer(24, 32), nn.MaxPool2d(2),   # (B, 32, 14, 14)
            *layer(32, 48), *layer(48, 48), nn.MaxPool2d(2),  # (B, 48, 7, 7)
            *layer(48, 72), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72 * 9, 10),
        )  # fmt: skip

    def digit_log_probabilities(self, x: Tensor) -> Tensor:
        """x as in forward -> what each channel's digit is, log-probabilities (B, 3, 10), float32."""
        _check(x)
        logits = self.reader(x.reshape(-1, 1, 28, 28))  # (3B, 10)
        return F.log_softmax(logits.float(), dim=1).view(-1, 3, 10)

    def forward(self, x: Tensor) -> Tensor:
        red, green, blue = self.digit_log_probabilities(x).unbind(1)  # (B, 10) each
        sums = log_sum_distribution(log_sum_distribution(red, green), blue)  # (B, 28): sums 0…27
        return F.log_softmax(sums[:, 1:21], dim=1)  # only sums 1…20 occur


def log_sum_distribution(a: Tensor, b: Tensor) -> Tensor:
    """Log-distribution of the sum of two independent numbers: (B, m) and (B, n) -> (B, m + n - 1), float32.

    Entry s is log Σ_i exp(a_i + b_{s-i}): a convolution in log space, safe where probabilities underflow.
    """
    pairs = a.float()[:, :, None] + b.float()[:, None, :]  # (B, m, n)
    m, n = pairs.shape[1:]
    # Shift row i right by i: then column s holds every pair that adds up to s.
    shifted = F.pad(pairs, (0, m), value=-torch.inf).flatten(1)[:, : m * (m + n - 1)]
    return shifted.view(-1, m, m + n - 1).logsumexp(dim=1)
