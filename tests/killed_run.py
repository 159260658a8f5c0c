"""A training run that is killed (kill -9) again and again at random moments, for test_training.py.

    python tests/killed_run.py FOLDER KILLS

One process imports torch and forks a child for each attempt. Leaves FOLDER/whole, a run that was left alone, and
FOLDER/killed, one that was killed KILLS times and then finished; prints how many kills hit the middle of a save.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))
from helpers import budget, classifiers, data, training

STEPS = 80


def run(folder: Path) -> None:
    """The notebook's loop, short, with a checkpoint after every step; resumes what it finds."""
    images, labels = (part[:64] for part in data.addnist("", "test", "demo"))
    torch.manual_seed(0)
    net = classifiers.PaperClassifier()
    limits = budget.Budget(parameters=100_000, steps=STEPS)
    ema = training.EMA(net, 0.9)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    parts = {"net": net, "ema": ema, "optimizer": optimizer, "limits": limits}
    with training.Checkpoint(folder, "run", {"steps": STEPS}, **parts) as checkpoint:
        start, history = checkpoint.resume()
        history = torch.zeros(STEPS) if history is None else history
        for step in range(start, STEPS):
            data.seed_step(0, step)
            x, y = data.batch(images, labels, 4, 0, step)
            loss = F.cross_entropy(net(data.jitter(data.normalise(data.shuffle_channels(x)), shift=1.0)), y)
            optimizer.zero_grad()
            loss.backward()
            limits.step(optimizer)
            ema.update(net)
            history[step] = loss.detach()
            checkpoint.save(step + 1, history)


def main(folder: Path, kills: int) -> None:
    torch.set_num_threads(1)
    begun = time.monotonic()
    run(folder / "whole")
    duration = time.monotonic() - begun
    moments, killed, saving = random.Random(0), 0, 0
    while killed < kills:
        child = os.fork()
        if child == 0:
            run(folder / "killed")
            os._exit(0)
        time.sleep(moments.uniform(0, duration / kills))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            raise SystemExit(f"the run ended after {killed} kills, before the next one")
        killed += 1
        saving += any((folder / "killed").glob("*.part"))
    run(folder / "killed")
    print(f"{killed} killed, {saving} of them in the middle of a save")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
