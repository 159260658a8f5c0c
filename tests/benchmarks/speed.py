"""Speed, side by side: every figure is a ratio of two things measured in turn, in one run, on one machine.

    python -m tests.benchmarks.speed [DATA_ROOT]        (once: pip install diffusers, for the library's U-Net)

The cases take turns, three rounds. On a CPU each runs in a process of its own, so that its peak memory is its own.
Without a DATA_ROOT that holds the FID network, the FID cases are left out. Writes weights/speed_cpu.json, or
weights/speed_cuda.json on a GPU.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from helpers import batches, budget, data, diffusion, fid, muon, results, runs, training, unet

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 3
DEVICE = training.pick_device()
GPU = DEVICE.type == "cuda"
BATCH, WARM, TIMED = (512, 30, 100) if GPU else (64, 3, 8)


def synchronised() -> float:
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(function, warm: int, timed: int) -> float:
    """Mean duration of a call, after some that do not count."""
    for _ in range(warm):
        function()
    begun = synchronised()
    for _ in range(timed):
        function()
    return (synchronised() - begun) / timed


# --- training ---------------------------------------------------------------------------------------------------


def notebook_cells() -> list[str]:
    """The code cells of notebook 2."""
    cells = json.loads((ROOT / "02_diffusion.ipynb").read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def notebook_loop(net=unet.UNet, compiled: bool = False, widths=(48, 96, 128)) -> float:
    """Images/s of notebook 2's own loop, its cells executed as they stand."""
    sources = notebook_cells()
    names = {"display": lambda figure: None}
    for source in sources[: 1 + next(i for i, source in enumerate(sources) if "def train(" in source)]:
        exec(source, names)
        if source.startswith("DATA = "):  # the settings cell
            names |= {"COMPILE": compiled, "MEASURE": "no", "NEON_STEPS": 0}
    names |= {"Curves": mock.MagicMock(), "amp": training.amp_dtype(DEVICE)}  # nothing is shown; not the demo's float32
    names["runs"], marks, seed_step = tempfile.mkdtemp(), {}, batches.seed_step

    def marked(seed, step):
        if step in (WARM, WARM + TIMED):
            marks[step] = synchronised()
        seed_step(seed, step)

    with mock.patch.dict(unet.NETWORKS, looped=net), mock.patch.object(runs, "seed_step", marked):
        r = names["recipe"] | {"steps": WARM + TIMED + 1, "batch": BATCH, "widths": widths}  # not the demo's small ones
        names["train"](names["fresh"](r), names["training_images"], r)
    return BATCH * TIMED / (marks[WARM + TIMED] - marks[WARM])


def usual_loop(amp: torch.dtype = torch.float32) -> float:
    """Images/s of the loop that a good student starts from: DataLoader, Adam, `.item()` each step; the same network."""
    from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, ToTensor

    images, labels = (part.repeat_interleave(10, dim=0) for part in data.cifar100("", "train", "demo"))  # 50,000
    pictures = [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).numpy()]  # as torchvision holds them
    transform = Compose([RandomHorizontalFlip(), ToTensor(), Normalize((0.5,) * 3, (0.5,) * 3)])

    class Pictures(torch.utils.data.Dataset):
        def __len__(self):
            return len(pictures)

        def __getitem__(self, i):
            return transform(pictures[i]), int(labels[i])

    workers = {"num_workers": os.cpu_count(), "persistent_workers": True, "pin_memory": GPU}
    loader = torch.utils.data.DataLoader(Pictures(), BATCH, shuffle=True, drop_last=True, **workers)

    def endless():
        while True:
            yield from loader

    net = unet.UNet().to(DEVICE)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    alphas_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), dim=0).to(DEVICE)
    stream, losses = endless(), []

    def step():
        x, y = (part.to(DEVICE, non_blocking=True) for part in next(stream))
        t = torch.randint(0, 1000, (len(x),), device=DEVICE)
        noise, signal = torch.randn_like(x), alphas_bar[t][:, None, None, None]
        with training.autocast(DEVICE, amp):
            loss = F.mse_loss(net(signal.sqrt() * x + (1 - signal).sqrt() * noise, t / 500 - 1, y).float(), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    return BATCH / seconds(step, WARM, TIMED)


class LibraryUNet(nn.Module):
    """The U-Net of Hugging Face diffusers at (a little less than) our number of parameters, in our loop."""

    classes = 100

    def __init__(self, _widths=None):
        super().__init__()
        from diffusers import UNet2DModel

        down = ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D")
        up = ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D")
        self.net = UNet2DModel(
            sample_size=32, layers_per_block=1, block_out_channels=(32, 56, 56), norm_num_groups=8,
            down_block_types=down, up_block_types=up, num_class_embeds=101,
        )  # fmt: skip

    def forward(self, x, noise, labels):
        return self.net(x, noise * 250, class_labels=labels).sample


def growth(batch: int, size: int) -> float:
    """Images/s of a training step without its loop, at another batch or resolution."""
    denoiser = diffusion.Denoiser(unet.UNet()).to(DEVICE, memory_format=torch.channels_last)
    optimizer = muon.Muon(denoiser, 1e-3)
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=DEVICE)
    labels = torch.randint(0, 100, (batch,), device=DEVICE)
    amp = training.amp_dtype(DEVICE)

    def step():
        with training.autocast(DEVICE, amp):
            loss = diffusion.loss(denoiser, images, labels, denoiser.training_sigmas(batch)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return batch / seconds(step, WARM, TIMED // 2)


# --- sampling and the FID ---------------------------------------------------------------------------------------


def sampling() -> float:
    """Images/s of notebook 2's sampler, as it draws for the FID, by the settings that stand there."""
    names = {}
    exec(next(source for source in notebook_cells() if "GUIDANCE = " in source), names)
    sigmas = diffusion.karras_sigmas(names["SAMPLER_STEPS"])
    settings = {"sigmas": sigmas, "guidance": names["GUIDANCE"], "interval": names["GUIDANCE_INTERVAL"]}
    denoiser = diffusion.Denoiser(unet.UNet()).to(DEVICE, memory_format=torch.channels_last)
    results.load_weights("diffusion", denoiser)
    labels = torch.arange(10_000 if GPU else 64) % 100
    amp = training.amp_dtype(DEVICE)

    def draw():
        with training.autocast(DEVICE, amp):
            diffusion.sample(denoiser, labels, **settings)

    return len(labels) / seconds(draw, 0, 1)


def fid_images() -> torch.Tensor:
    return data.cifar100("", "train", "demo")[0][: 5000 if GPU else 150]


def our_features() -> float:
    training.allow_tf32(False)
    network, images = fid.load_network(os.environ["DATA_ROOT"], DEVICE), fid_images()
    fid.features(images[:20], network, device=DEVICE)
    return len(images) / seconds(lambda: fid.features(images, network, device=DEVICE), 0, 1)


def clean_fids_features() -> float:
    """clean-fid's own way: a folder of PNGs, its loader, the same network as it was published."""
    from cleanfid.fid import get_folder_features

    training.allow_tf32(False)
    network, images = fid.load_network(os.environ["DATA_ROOT"], DEVICE), fid_images()
    workers = {"num_workers": os.cpu_count(), "verbose": False, "device": DEVICE}
    fid.features(images[:20], network, device=DEVICE)

    def score():
        with tempfile.TemporaryDirectory() as folder:
            for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
                Image.fromarray(image).save(Path(folder) / f"{i:05}.png")
            get_folder_features(folder, network, **workers)

    return len(images) / seconds(score, 0, 1)


# --- the run ----------------------------------------------------------------------------------------------------

CASES = {
    "usual loop": usual_loop,
    "usual loop, autocast": lambda: usual_loop(training.amp_dtype(DEVICE)),
    "notebook loop": notebook_loop,
    "notebook loop, compiled": lambda: notebook_loop(compiled=True),
    "notebook loop, U-Net of diffusers": lambda: notebook_loop(LibraryUNet),
    "sampling": sampling,
    "features by clean-fid": clean_fids_features,
    "our features": our_features,
} | {f"batch {b}, {s}×{s}": (lambda b=b, s=s: growth(b, s)) for b, s in [(16, 32), (64, 32), (256, 32), (64, 64)]}


def main(root: str | None) -> None:
    os.environ |= {"DATA": "demo", "DATA_ROOT": root or ""}
    names = [name for name in CASES if root or "features" not in name]
    rates, memory = {name: [] for name in names}, {}
    for _ in range(ROUNDS):
        for name in names:
            rate, memory[name] = measure(name) if GPU else in_a_process(name)
            rates[name].append(rate)
            print(f"{name:36}{rate:12.2f} images/s{memory[name]:10.0f} MiB", flush=True)
    rows = {
        name: {
            "images_per_second": float(f"{statistics.median(values):.4g}"),
            "least_to_most": [float(f"{value:.4g}") for value in (min(values), max(values))],
            "peak_memory_mib": round(memory[name]),
        }
        for name, values in rates.items()
    }
    about = {
        "batch": BATCH,
        "rounds": ROUNDS,
        "parameters": budget.count_parameters(unet.UNet()),
        "memory": "of the GPU" if GPU else "resident, of the process",
    }
    about |= {"rows": rows, **results.environment(DEVICE)}
    results.save_card(f"speed_{DEVICE.type}", about, results.WEIGHTS)


def measure(case: str) -> tuple[float, float]:
    """Images/s of a case, and its peak memory in MiB."""
    if GPU:  # no case inherits from the one before it
        torch.backends.cudnn.allow_tf32 = True  # PyTorch's default, which the notebook changes
        torch._dynamo.reset()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with contextlib.redirect_stdout(sys.stderr):
        rate = CASES[case]()
    peak = torch.cuda.max_memory_allocated() if GPU else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return rate, peak / 2**20


def in_a_process(case: str) -> tuple[float, float]:
    command = [sys.executable, "-m", "tests.benchmarks.speed", "--case", case]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        print(json.dumps(measure(sys.argv[2])))
    else:
        main(*(sys.argv[1:] or [None]))
