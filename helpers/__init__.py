"""The bundle's helpers. A page imports this before torch: what holds for all of them is set here."""

import os
import sys

# Threads with nothing to do sleep, so that other processes get on. GNU's OpenMP first waits for some microseconds, as
# falling asleep at once is slow on an idle machine. torch reads both, once.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
if hasattr(sys.stdout, "reconfigure"):  # as a script, on a terminal that has no ± or σ
    sys.stdout.reconfigure(errors="replace")
