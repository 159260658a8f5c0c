"""The two hard limits of the coursework, counted and enforced: parameters and optimisation steps."""

from torch import nn


class BudgetError(RuntimeError):
    """A model or a run would exceed its limit."""


def count_parameters(module: nn.Module) -> int:
    """Number of scalar parameters: shared ones once, frozen ones included, buffers not.

    Equals the coursework's `len(torch.nn.utils.parameters_to_vector(module.parameters()))`.
    """
    return sum(p.numel() for p in module.parameters())


class Budget:
    """Limits on parameters and optimiser steps, with a count of the steps really taken.

    >>> budget = Budget(parameters=100_000, steps=10_000)
    >>> budget.check(net)               # BudgetError if the net is too large
    >>> budget.step(optimizer, scaler)  # steps, or raises BudgetError if it would be one too many

    A step that a `GradScaler` skips (infinite gradients) changes no weight and is not counted.
    """

    def __init__(self, *, parameters: int, steps: int):
        if not (parameters >= 1 and steps >= 1):  # so that NaN is none
            raise ValueError(f"limits must be positive, got parameters={parameters}, steps={steps}")
        self.parameters, self.steps, self.steps_used = parameters, steps, 0

    def check(self, module: nn.Module) -> int:
        """Return the module's parameter count; raise BudgetError if it is over the limit."""
        count = count_parameters(module)
        if count > self.parameters:
            much = f"{count:,} parameters, {count - self.parameters:,} over the limit of {self.parameters:,}"
            raise BudgetError(f"{type(module).__name__} has {much}. Make a layer narrower or share one.")
        return count

    def step(self, optimizer, scaler=None) -> bool:
        """Take one optimiser step and count it; return whether the weights were updated.

        scaler: a `torch.amp.GradScaler` that scaled the loss, or None. It is updated here.
        Raises BudgetError, before anything changes, when the limit has been reached.
        """
        if self.steps_used >= self.steps:
            raise BudgetError(f"all {self.steps:,} optimisation steps are used: this one would be one too many.")
        if scaler is None or not scaler.is_enabled():
            optimizer.step()
            taken = True
        else:
            before = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            # The scale backs off exactly when a step was skipped, and at 0 every one is.
            taken = scaler.get_scale() >= before > 0
        self.steps_used += taken
        return taken

    def certificate(self, module: nn.Module) -> dict:
        """What a result card holds: parameters and steps used, beside their limits."""
        return {
            "parameters": self.check(module),
            "parameter_limit": self.parameters,
            "steps": self.steps_used,
            "step_limit": self.steps,
        }

    def state_dict(self) -> dict:
        return {"steps_used": self.steps_used}

    def load_state_dict(self, state: dict) -> None:
        self.steps_used = state["steps_used"]
