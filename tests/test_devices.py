"""What must work where this machine cannot be: Apple's GPUs, other defaults, other backends, other terminals."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys

import matplotlib
import pytest
import torch
from torch.nn import functional as F

from helpers import augmentation, batches, classifiers, data, diffusion, fid, interpolation, muon, plots, training, unet
from tests.pages import NOTEBOOKS, ROOT, code

MPS = torch.device("mps")


class OnMPS(torch.Tensor):
    """A tensor on the CPU that refuses what Apple's GPUs refuse: float64, and bicubic grid_sample."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        if function == torch.Tensor.device.__get__:
            return MPS
        if function is torch.Tensor.double or torch.float64 in (*args[1:], *kwargs.values()):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        if function is F.grid_sample and kwargs.get("mode") == "bicubic":
            raise NotImplementedError("grid_sampler_2d: bicubic is not implemented for MPS")
        return super().__torch_function__(function, types, args, kwargs)


def _on_mps(x):
    return x.as_subclass(OnMPS)


@pytest.fixture
def back(monkeypatch):
    """What is sent to the GPU stays where it is, since there is none; the list of it."""
    sent, to = [], torch.Tensor.to

    def stay(x, *args, **options):
        sent.extend([x] * (MPS in args))
        args = [arg for arg in args if arg != MPS]
        return to(x, *args, **options) if args or options else x

    monkeypatch.setattr(torch.Tensor, "to", stay)
    return sent


def test_the_stand_in_refuses():
    with pytest.raises(TypeError, match="float64"):
        _on_mps(torch.ones(2)).double()
    with pytest.raises(TypeError, match="float64"):
        _on_mps(torch.ones(2)).to(torch.float64)


def test_training_curves_and_distances_of_tensors_on_an_apple_gpu():
    loss = torch.cat([torch.rand(50), torch.full((50,), torch.nan)])
    found, expected = (plots.training_curves({"": {"loss": place(loss)}}) for place in (_on_mps, torch.Tensor.clone))
    for a, b in zip(found.axes[0].lines, expected.axes[0].lines, strict=True):
        assert a.get_ydata().tolist() == b.get_ydata().tolist()
    a, b = torch.randn(2, 8, 3).unbind()
    for distance in (fid.frechet_distance, fid.mean_distance):
        assert distance(_on_mps(a), _on_mps(b)) == distance(a, b)


def test_slerp_and_retime_on_an_apple_gpu(back):
    a, b, t = torch.randn(3, 4), torch.randn(3, 4), torch.tensor([0.0, 0.3, 1.0])
    assert torch.equal(interpolation.slerp(_on_mps(a), _on_mps(b), t), interpolation.slerp(a, b, t))
    assert len(back) == 1
    positions, lengths = torch.linspace(0, 1, 4), torch.rand(3, 2)
    found = interpolation.retime(_on_mps(positions), _on_mps(lengths), 3)
    assert torch.equal(found, interpolation.retime(positions, lengths, 3))


def test_jitter_on_an_apple_gpu_takes_the_cpu(back):
    images = batches.normalise(torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8))
    torch.manual_seed(0)
    how = {"degrees": 10, "scale": 0.1, "shear": 9, "shift": 2, "bend": 1, "stroke": 0.5}
    expected = augmentation.jitter(images, **how)
    torch.manual_seed(0)
    assert torch.equal(augmentation.jitter(_on_mps(images), **how), expected)
    assert len(back) == 1


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_another_default_dtype(float64):
    torch.manual_seed(0)
    denoiser = diffusion.Denoiser(unet.UNet((8, 16), (1, 1), 5))
    images, labels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8), torch.arange(4)
    ema, optimizer = training.EMA(denoiser, 0.9), muon.Muon(denoiser, 0.001)
    diffusion.loss(denoiser, images, labels, denoiser.training_sigmas(4), label_dropout=0.1).mean().backward()
    optimizer.step()
    ema.update(denoiser)
    sampling = {"sigmas": diffusion.karras_sigmas(2), "guidance": 2.0}
    drawn = diffusion.sample(ema.module, labels, **sampling)
    assert drawn.dtype == torch.uint8
    pairs, noises = (labels, labels.flip(0)), diffusion.starting_noise(8, 0).split(4)
    assert len(interpolation.between(denoiser, pairs, noises, torch.tensor([0.5]), **sampling)) == 1
    digits = batches.normalise(data.addnist("", "test", "demo")[0][:4])
    digits = augmentation.jitter(digits, degrees=10, scale=0.1, shear=9, shift=1, bend=1, stroke=0.5)
    for net in (classifiers.PaperClassifier(), classifiers.DigitSumClassifier()):
        assert net(digits).shape == (4, 20)
    assert fid.features(images, lambda x: x.flatten(1)[:, :4]).dtype == torch.float32


def test_a_page_as_a_script_writes_to_a_terminal_that_knows_ascii_only():
    program = code(NOTEBOOKS[0])[0]["source"] + "\nprint('1 ± 2 …')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1 ? 2 ?\n"


def test_a_helper_that_is_taken_along_changes_nothing_when_it_is_imported():
    """Neither matplotlib's settings, nor standard output, nor torch's random numbers and flags."""

    def state():
        flags = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.get_default_dtype()
        numbers = torch.random.get_rng_state().tolist(), torch.get_num_threads()
        return dict(matplotlib.rcParams), sys.stdout.errors, sys.stderr.errors, flags, numbers

    with matplotlib.rc_context({"font.size": 20}):
        before = state()
        for path in (ROOT / "helpers").glob("*.py"):
            spec = importlib.util.spec_from_file_location(f"copy_of_{path.stem}", path)
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
            assert state() == before, path.name


# --- packages ---------------------------------------------------------------------------------------------------

PACKAGES = {"PIL": "pillow", "IPython": "ipython", "cleanfid": "clean-fid"}  # where the package has another name
COMMANDS = {"jupyterlab", "nbmake", "pytest"}  # used, not imported


def _imports(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


def test_every_direct_import_stands_in_requirements_with_the_least_version_that_works():
    found = set()
    for path in [*ROOT.glob("helpers/*.py"), *ROOT.glob("tests/*.py")]:
        found |= set(_imports(path.read_text(encoding="utf-8")))
    for path in ROOT.glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                found |= set(_imports("".join(cell["source"])))
    outside = {PACKAGES.get(name, name) for name in found - set(sys.stdlib_module_names) - {"helpers", "tests"}}
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    named = dict(re.match(r"([\w-]+)>=([\d.]+)", line).groups() for line in lines if line and line[0] != "#")
    assert set(named) == outside | COMMANDS
    assert tuple(map(int, named["pillow"].split("."))) >= (10, 1)  # ImageFont.load_default(size=…)
