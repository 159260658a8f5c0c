"""Notebook 1's training loop killed (kill -9) again and again at random moments, for test_runs.py.

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

from tests import pages


def main(folder: Path, kills: int) -> None:
    torch.set_num_threads(1)
    train, kernel = pages.training_loop(1, folder, save_every=1, STEPS=60, BATCH=4)

    def into(name: str) -> None:
        kernel["runs"] = folder / name
        train()

    begun = time.monotonic()
    into("whole")
    duration = time.monotonic() - begun
    moments, killed, saving = random.Random(0), 0, 0
    while killed < kills or not saving:  # at least one in the middle of a save
        child = os.fork()
        if child == 0:
            into("killed")
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
    into("killed")
    print(f"{killed} killed, {saving} of them in the middle of a save")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
