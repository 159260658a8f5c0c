"""Muon, the optimiser of the U-Net: orthogonal steps for matrices, Adam for the rest."""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Muon for the weights of linear and convolutional layers, Adam for everything else, with one learning rate.

    A weight is taken as a matrix (out, in·k·k). Its step is the momentum of its gradient made orthogonal, so that all
    directions move by the same amount, and scaled to the size of a typical Adam step. Biases, norms, embeddings and
    matrices of at most 8 rows or columns (the head of a U-Net) get Adam with betas (0.9, 0.99). Weights do not decay.
    Sources: Jordan et al. 2024 (Muon); Liu et al. 2025 (one learning rate for both, "match RMS").
    """

    def __init__(self, net: nn.Module, lr: float):
        layers = {id(m.weight): m.weight for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)}.values()
        matrices = [weight for weight in layers if min(weight.flatten(1).shape) > 8]
        taken = set(map(id, matrices))
        rest = [parameter for parameter in net.parameters() if id(parameter) not in taken]
        super().__init__([{"params": matrices}, {"params": rest}], {"lr": lr, "steps": 0})
        self._numbers_to_device()

    def _numbers_to_device(self) -> None:
        """Rate and count become tensors beside the weights, so that a step recorded once reads them each time."""
        device = next(weight.device for group in self.param_groups for weight in group["params"])
        for group in self.param_groups:
            group |= {
                name: torch.tensor(float(group[name]), dtype=torch.float32, device=device) for name in ("lr", "steps")
            }

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self._numbers_to_device()

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One step; closure, as of any optimiser of torch's, computes the loss and its gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        matrices, rest = self.param_groups
        self._orthogonal_step(matrices)
        self._adam_step(rest)
        return loss

    def _orthogonal_step(self, group: dict) -> None:
        weights, gradients, (averages,) = self._with_state(group, "average")
        if not weights:
            return
        torch._foreach_lerp_(averages, gradients, 0.05)  # momentum 0.95
        ahead = torch._foreach_lerp(gradients, averages, 0.95)  # Nesterov's look ahead
        by_shape = defaultdict(list)  # by shape: together they are faster on a CPU, whose idle threads sleep
        for weight, gradient in zip(weights, ahead, strict=True):
            matrix = gradient.flatten(1)
            by_shape[matrix.shape].append((weight, matrix))
        for shape, pairs in by_shape.items():
            updates = orthogonalise(torch.stack([matrix for _, matrix in pairs]))
            updates = updates * (group["lr"] * 0.2 * max(shape) ** 0.5)
            for (weight, _), update in zip(pairs, updates, strict=True):
                weight -= update.reshape(weight.shape)

    def _adam_step(self, group: dict) -> None:
        weights, gradients, (averages, squares) = self._with_state(group, "average", "square")
        if not weights:
            return
        group["steps"] += 1
        torch._foreach_lerp_(averages, gradients, 0.1)
        torch._foreach_lerp_(squares, torch._foreach_mul(gradients, gradients), 0.01)
        spreads = torch._foreach_sqrt(squares)
        torch._foreach_div_(spreads, (1 - 0.99 ** group["steps"]) ** 0.5)
        torch._foreach_add_(spreads, 1e-8)
        updates = torch._foreach_div(averages, spreads)
        torch._foreach_mul_(updates, group["lr"] / (1 - 0.9 ** group["steps"]))
        torch._foreach_sub_(weights, updates)

    def _with_state(self, group: dict, *names: str) -> tuple[list[Tensor], list[Tensor], list[list[Tensor]]]:
        """A group's parameters that have a gradient, the gradients, and their state by name, zero at first."""
        weights = [weight for weight in group["params"] if weight.grad is not None]
        for weight in weights:
            if not self.state[weight]:
                self.state[weight] = {name: torch.zeros_like(weight) for name in names}
        return weights, [w.grad for w in weights], [[self.state[w][name] for w in weights] for name in names]


def orthogonalise(matrices: Tensor) -> Tensor:
    """Matrices (N, R, C) with their singular values moved near 1 (about 0.7…1.2), by five Newton-Schulz iterations.

    In half precision on a GPU, which is precise enough here. Source: the quintic polynomial of Jordan et al. 2024.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if x.is_cuda:
        x = x.to(torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x.mT if tall else x).float()
