import matplotlib
import pytest
import torch

matplotlib.use("Agg")


@pytest.fixture
def rng():
    """A torch generator with a fixed seed."""
    return torch.Generator().manual_seed(0)
