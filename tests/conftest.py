import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: as in the notebooks, idle threads sleep

import matplotlib
import pytest
import torch

matplotlib.use("Agg")


@pytest.fixture
def rng():
    """A torch generator with a fixed seed."""
    return torch.Generator().manual_seed(0)
