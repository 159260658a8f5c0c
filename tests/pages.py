"""The notebooks as programs: their cells, and what the cells define, for the tests."""

import json
import os
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(ROOT.glob("0*.ipynb"))


def code(path):
    """The code cells of a notebook, their sources as strings."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in cells if cell["cell_type"] == "code"]


def settings_cell(path):
    (cell,) = [c for c in code(path) if "parameters" in c["metadata"].get("tags", [])]
    return cell


def beginning(path):
    """The cells up to the settings and the one that checks them, without the first picture, which takes seconds."""
    cells = code(path)
    at = cells.index(settings_cell(path))
    return cells[: at - 1] + cells[at : at + 2]


def run(path, cells, mocked=True, **changes):
    """Execute cells with the settings nbmake mocks, if wanted, and further changes; returns the kernel's names."""
    settings, kernel = settings_cell(path), {"__name__": "__main__"}
    for cell in cells:
        exec(compile(cell["source"], path.name, "exec"), kernel)
        if cell == settings:
            kernel |= (settings["metadata"]["nbmake"]["mock"] if mocked else {}) | changes
    plt.close("all")
    return kernel


def definitions(path, *starts, **changes):
    """A notebook's names after its imports, its settings and the cells in which `starts` stand."""
    cells = code(path)
    at = cells.index(settings_cell(path))
    wanted = [cell for cell in cells[at + 2 :] if any(start in cell["source"] for start in starts)]
    assert len(wanted) == len(starts)
    return run(path, beginning(path) + wanted, **changes)


def training_loop(number, folder, save_every=500, **changes):
    """Notebook 1's or 2's `train` on the demo data, checkpoints into `folder`; and the kernel it lives in."""
    before = os.getcwd()
    os.chdir(ROOT)
    try:
        starts = "recipe = ", "def loss_and_accuracy(" if number == 1 else "def mean_loss(", "def train("
        kernel = definitions(NOTEBOOKS[number - 1], *starts, DATA="demo", RUNS=str(folder), **changes)
    finally:
        os.chdir(before)
    kernel["Run"] = partial(kernel["Run"], save_every=save_every)
    if number == 1:
        return lambda: kernel["train"](kernel["classifiers"].DigitSumClassifier, 0, data="demo"), kernel
    r = kernel["recipe"] | {"steps": kernel["STEPS"], "batch": kernel["BATCH"]}
    return lambda: kernel["train"](kernel["fresh"](r), kernel["training_images"], r), kernel
