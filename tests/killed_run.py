"""A short training run for test_training.py, and that run killed (kill -9) again and again at random moments.

    python -m tests.killed_run FOLDER KILLS

One process imports torch and forks a child for each attempt. Leaves FOLDER/whole, a run that was left alone, and
FOLDER/killed, one that was killed KILLS times and then finished; prints how many kills hit the middle of a save.
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from helpers import batches, budget, classifiers, data, training


def run(folder: Path, images: torch.Tensor, labels: torch.Tensor, steps: int, stop: int) -> training.Checkpoint:
    """The notebook's loop with a checkpoint after every step, up to `stop` of `steps`; resumes what it finds."""
    torch.manual_seed(0)
    net = classifiers.PaperClassifier()
    limits = budget.Budget(parameters=100_000, steps=steps)
    ema = training.EMA(net, 0.9)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    parts = {"net": net, "ema": ema, "optimizer": optimizer, "limits": limits}
    with training.Checkpoint(folder, "run", {"steps": steps}, **parts) as checkpoint:
        start, history = checkpoint.resume()
        history = torch.zeros(steps) if history is None else history
        for step in range(start, stop):
            batches.seed_step(0, step)
            x, y = batches.batch(images, labels, 4, 0, step)
            loss = F.cross_entropy(net(batches.jitter(batches.normalise(batches.shuffle_channels(x)), shift=1.0)), y)
            optimizer.zero_grad()
            loss.backward()
            limits.step(optimizer)
            ema.update(net)
            history[step] = loss.detach()
            checkpoint.save(step + 1, history)
    return checkpoint


def main(folder: Path, kills: int) -> None:
    torch.set_num_threads(1)
    images, labels = (part[:64] for part in data.addnist("", "test", "demo"))
    begun = time.monotonic()
    run(folder / "whole", images, labels, 80, 80)
    duration = time.monotonic() - begun
    moments, killed, saving = random.Random(0), 0, 0
    while killed < kills or not saving:  # at least one in the middle of a save
        child = os.fork()
        if child == 0:
            run(folder / "killed", images, labels, 80, 80)
            os._exit(0)
        time.sleep(moments.uniform(0, duration / kills))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) > 0:
            raise SystemExit(f"the run failed after {killed} kills")
        if not os.WIFSIGNALED(status):  # done before the next kill, the machine was busier at first: again, and sooner
            shutil.rmtree(folder / "killed")
            killed, saving, duration = 0, 0, duration / 2
            continue
        killed += 1
        saving += any((folder / "killed").glob("*.part"))
    run(folder / "killed", images, labels, 80, 80)
    print(f"{killed} killed, {saving} of them in the middle of a save")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
