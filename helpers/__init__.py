"""The bundle's helpers. A page imports this before torch: what holds for all of them is set here."""

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads sleep, others get on; torch reads it once
if hasattr(sys.stdout, "reconfigure"):  # as a script, on a terminal that has no ± or σ
    sys.stdout.reconfigure(errors="replace")
