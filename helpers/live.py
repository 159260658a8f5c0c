"""What changes in a page while a cell runs: training curves, and a line that counts."""

import time

from IPython import get_ipython
from IPython.display import Pretty, display
from torch import Tensor

from helpers.plots import training_curves


class Curves:
    """The training curves, redrawn in place while a loop runs, at most every `seconds`; in the end, one line of text.

    Called with (steps done, curves by name), first where the run begins or goes on, then after every step.
    """

    def __init__(self, steps: int, name: str = "", seconds: float = 15.0):
        self.steps, self.name, self.seconds = steps, name, seconds
        self.handle, self.begun, self.last = None, None, (0.0, 0)

    def __call__(self, step: int, curves: dict[str, Tensor]) -> None:
        now = time.monotonic()
        self.begun = step if self.begun is None else self.begun
        if step <= self.begun + 1:  # the first step may compile, so its speed tells nothing
            self.last = now, step
        if step == self.begun or (step < self.steps and now - self.last[0] < self.seconds):
            return
        if step < self.steps:
            before, then = self.last
            left = f"about {(now - before) / max(1, step - then) * (self.steps - step) / 60:.0f} min left"
            self.last = now, step
            text = f"{self.name} step {step:,} of {self.steps:,}, {left}"
        else:
            text = f"{self.name} {step:,} steps done"
        if get_ipython() is None:  # in a script
            print(text, flush=True)
            return
        shown = training_curves({self.name: curves}, title=text) if step < self.steps else Pretty(text)
        if self.handle is None:
            self.handle = display(shown, display_id=True)
        else:
            self.handle.update(shown)


class Line:
    """One line of text, "samples: 250 of 10,000", updated in place, anew in another cell: a `progress` argument."""

    def __init__(self, name: str):
        self.name, self.handle, self.cell = name, None, None

    def __call__(self, done: int, total: int) -> None:
        text, shell = f"{self.name}: {done:,} of {total:,}", get_ipython()
        if shell is None:  # in a script
            print(f"\r{text}", end="" if done < total else "\n", flush=True)
            return
        line, cell = Pretty(text), shell.execution_count
        if self.handle is None or cell != self.cell:
            self.handle, self.cell = display(line, display_id=True), cell
        else:
            self.handle.update(line)
