import helpers  # noqa: F401, I001 (before torch: as in the notebooks, it sets how idle threads wait)
import matplotlib
import pytest
import torch

from helpers import diffusion, unet

matplotlib.use("Agg")


@pytest.fixture
def rng():
    """A torch generator with a fixed seed."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def denoiser():
    """A small one of 5 classes, with weights at random, in the layers that begin with zeros as well."""
    torch.manual_seed(0)
    net = unet.UNet(widths=(8, 16), blocks=(1, 1), classes=5)
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return diffusion.Denoiser(net).eval()
