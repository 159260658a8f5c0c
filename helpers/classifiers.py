"""The paper net and the digit-sum net, for AddNIST, and nets to compare the second with."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers import augmentation, batches

# A fixed input: a net's answer to it, kept in the card, shows whether its code has changed since it was trained.
PROBE = (torch.linspace(-1, 3, 3 * 28 * 28).view(1, 3, 28, 28),)


def _check(x: Tensor) -> None:
    if x.ndim != 4 or x.shape[1:] != (3, 28, 28):
        raise ValueError(f"expected images (B, 3, 28, 28), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"expected normalised float images, got {x.dtype}: pass them through batches.normalise first")


class PaperClassifier(nn.Module):
    """The paper net, that of the report, 98,740 parameters: four 3×3 convolutions, three pools, two linear layers.

    forward(x): float (B, 3, 28, 28) normalised by `batches.normalise` -> logits (B, 20). Raises ValueError or TypeError
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
        return self.linear(self.convolutions(x.to(next(self.parameters()).dtype)))


class DigitSumClassifier(nn.Module):
    """One small digit reader shared by the three channels, and an exact sum: 83,618 parameters.

    The label is the sum of three digits minus 1, and the distribution of a sum follows from those of the digits,
    without a parameter (`label_log_probabilities`). Only the sum is ever labelled; reading emerges.

    widths: channels of the reader's five convolutions (the default is the shipped net). They are unpadded, after An et
    al. (2020): the map shrinks as it goes, so deep layers cost little and none looks beyond the edge. The second has a
    stride of 2: cheaper than a pool, which would throw three quarters of what it computed away.
    forward(x): float (B, 3, 28, 28) normalised by `batches.normalise` -> log-probabilities (B, 20), float32 and safe
    under autocast. Raises ValueError or TypeError on other shapes and types.
    """

    def __init__(self, widths: tuple[int, int, int, int, int] = (24, 32, 48, 56, 64)):
        super().__init__()

        def layer(channels_in: int, channels: int, stride: int = 1) -> list[nn.Module]:
            return [nn.Conv2d(channels_in, channels, 3, stride, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]

        a, b, c, d, e = widths
        self.reader = nn.Sequential(
            *layer(1, a), *layer(a, b, stride=2),                       # (3B, b, 12, 12)
            *layer(b, c), *layer(c, d), *layer(d, e), nn.AvgPool2d(2),  # (3B, e, 3, 3)
            nn.Flatten(), nn.Linear(9 * e, 10),
        )  # fmt: skip

    def digit_log_probabilities(self, x: Tensor) -> Tensor:
        """x as in forward -> what each channel's digit is, log-probabilities (B, 3, 10), float32."""
        _check(x)
        logits = self.reader(x.reshape(-1, 1, 28, 28).to(next(self.parameters()).dtype))  # (3B, 10)
        return F.log_softmax(logits.float(), dim=1).view(-1, 3, 10)

    def forward(self, x: Tensor) -> Tensor:
        return label_log_probabilities(self.digit_log_probabilities(x))


def label_log_probabilities(digits: Tensor) -> Tensor:
    """Digits' log-probabilities (B, 3, 10) -> AddNIST labels' (B, 20), float32.

    The label is the sum - 1, and sums 1…20 occur. AddNIST holds as many images of each label as
    of any other, so having many ways makes no sum more frequent: what counts is the mean over
    its ways, not their total. (Bayes' rule: each triple has the frequency
    1 / (20 · ways); the reader's digits are taken as equally frequent.)
    Raises ValueError.
    """
    if digits.shape[1:] != (3, 10):
        raise ValueError(f"expected digits (B, 3, 10), got {tuple(digits.shape)}")
    ways = log_sum_distribution(torch.zeros_like(digits[:1]))  # log of their number
    return F.log_softmax((log_sum_distribution(digits) - ways)[:, 1:21], dim=1)


def log_sum_distribution(digits: Tensor) -> Tensor:
    """Log-distribution of the sum of independent digits: (B, k, 10) -> (B, 9k + 1), float32.

    Entry s is that of the sum s. Adding one digit to a sum convolves their distributions:
    log p(s) = log Σ_i exp(a_{s-i} + b_i), in log space, safe where probabilities underflow.
    """
    total, *rest = digits.float().unbind(1)
    for digit in rest:
        # Ten copies of the sum so far, one for each value of the digit: shifted by the value,
        # times its probability.
        values = enumerate((total[:, None] + digit[:, :, None]).unbind(1))  # (B, 9k + 1) each
        copies = [F.pad(copy, (i, 9 - i), value=-torch.inf) for i, copy in values]
        total = torch.stack(copies).logsumexp(dim=0)
    return total


class DeeperPaperClassifier(PaperClassifier):
    """For comparison: the paper net twice as deep and narrower, 97,848 parameters."""

    def __init__(self):
        super().__init__()

        def two(channels_in: int, channels: int) -> list[nn.Module]:
            first = nn.Conv2d(channels_in, channels, 3, padding=1)
            return [first, nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]

        self.convolutions = nn.Sequential(
            *two(3, 16), nn.MaxPool2d(2),   # (B, 16, 14, 14)
            *two(16, 28), nn.MaxPool2d(2),  # (B, 28, 7, 7)
            *two(28, 42), nn.MaxPool2d(2),  # (B, 42, 3, 3)
            *two(42, 42),                   # (B, 42, 3, 3)
        )  # fmt: skip
        self.linear = nn.Sequential(nn.Flatten(), nn.Linear(378, 64), nn.ReLU(), nn.Linear(64, 20))


class ToldDigits(DigitSumClassifier):
    """For comparison: in training it answers with each digit, (B, 3, 10), whose names it is told; else as ever."""

    def forward(self, x: Tensor) -> Tensor:
        return self.digit_log_probabilities(x) if self.training else super().forward(x)


class LearnedSum(nn.Module):
    """For comparison: the shared reader, a linear layer in place of the sum; logits (B, 20)."""

    def __init__(self):
        super().__init__()
        self.digits, self.sum = DigitSumClassifier(), nn.Linear(30, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.sum(self.digits.digit_log_probabilities(x).flatten(1))


class SeparateReaders(nn.Module):
    """For comparison: the exact sum, three narrower readers; log-probabilities (B, 20)."""

    def __init__(self):
        super().__init__()
        narrow = (14, 20, 30, 34, 38)
        self.readers = nn.ModuleList(DigitSumClassifier(narrow) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        read = [reader.digit_log_probabilities(x) for reader in self.readers]  # (B, 3, 10) each
        own = [digits[:, channel] for channel, digits in enumerate(read)]
        return label_log_probabilities(torch.stack(own, dim=1))


def no_batch_norm() -> DigitSumClassifier:
    """For comparison: the digit-sum net, with biases in place of batch norm's shifts."""
    net = DigitSumClassifier()
    layers = []
    for layer in net.reader:
        if isinstance(layer, nn.Conv2d):
            layer = nn.Conv2d(layer.in_channels, layer.out_channels, 3, layer.stride)
        if not isinstance(layer, nn.BatchNorm2d):
            layers.append(layer)
    net.reader = nn.Sequential(*layers)
    return net


@torch.no_grad()
def predict(net: nn.Module, images: Tensor, *, views: int = 1, jitter: dict | None = None) -> Tensor:
    """A net's answers to uint8 images (N, C, 28, 28), normalised for it: log-probabilities (N, K), float32, on the CPU.

    net: from normalised floats to logits or log-probabilities, in eval mode, on any device. views: above 1, test-time
    augmentation: the mean of the log-probabilities over so many views of each image by `augmentation.jitter(**jitter)`,
    not rescaled to add up to one; the same views for every net, and torch's global generator stays as it was. Raises
    ValueError for a net in training mode, and for more than one view without a jitter.
    """
    if any(part.training for part in net.modules()):
        raise ValueError("the net is in training mode, where its answers depend on the batch: call net.eval() first")
    if views < 1 or (views > 1 and jitter is None):
        raise ValueError(f"views must be at least 1, and more than one need a jitter, got {views} and {jitter}")
    device, found = next(net.parameters()).device, []
    change = partial(augmentation.jitter, **jitter) if views > 1 else nn.Identity()
    with batches.seeded(0, 0):
        for part in images.split(64):
            x = batches.normalise(part.to(device))
            answers = [F.log_softmax(net(change(x)).float(), dim=1) for _ in range(views)]
            found.append(torch.stack(answers).mean(dim=0).cpu())
    return torch.cat(found)
