"""What changes in a page while a cell runs: training curves, and a line that counts."""

from __future__ import annotations

import time

from IPython.display import Pretty, display
from torch import Tensor

from helpers.plots import training_curves


class Curves:
    """The training curves, redrawn in place while a loop runs, at most every `seconds`; in the end, one line of text.

    >>> show = Curves(steps=STEPS)
    >>> show(step, {"loss": losses})  # first where the run begins or goes on, then at every save
    """

    def __init__(self, steps: int, name: str = "", seconds: float = 15.0):
        self.steps, self.name, self.seconds = steps, name, seconds
        self.handle, self.last, self.begun = None, -float("inf"), None

    def __call__(self, step: int, curves: dict[str, Tensor]) -> None:
        now = time.monotonic()
        self.begun = self.begun or (now, step)
        if step == self.begun[1] or (now - self.last < self.seconds and step < self.steps):
            return
        self.last = now
        if step < self.steps:
            shown = training_curves({self.name: curves})
            seconds = (now - self.begun[0]) / max(1, step - self.begun[1]) * (self.steps - step)
            left = f"about {seconds / 60:.0f} min left"
            shown.suptitle(f"{self.name} step {step:,} of {self.steps:,}, {left}", x=0.01, ha="left", fontsize=10)
        else:
            shown = Pretty(f"{self.name} {step:,} steps done")
        if self.handle is None:
            self.handle = display(shown, display_id=True)
        else:
            self.handle.update(shown)


class Line:
    """One line of text, "sampling: 250 of 10,000", updated in place; pass it as a `progress` argument."""

    def __init__(self, name: str):
        self.name, self.handle = name, None

    def __call__(self, done: int, total: int) -> None:
        line = Pretty(f"{self.name}: {done:,} of {total:,}")
        if self.handle is None:
            self.handle = display(line, display_id=True)
        else:
            self.handle.update(line)
