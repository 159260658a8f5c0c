"""What each ingredient of notebook 2's recipe gives by itself: short runs of its own loop, judged on held-out images.

    python -m tests.benchmarks.ingredients [SECONDS] [STEPS] [TITLE …]        (a GPU; environment: DATA, DATA_ROOT)

Every run changes one thing, with warm-up, decay and EMA scaled to its length; Adam gets the best of three rates. Each
is judged by the loss on the held-out images and by the FID of 5,000 samples against them, with guidance and without.
No run begins after SECONDS (500); called again, it goes on. TITLE: of `VARIANTS`, all of them unless given. Writes
runs/diffusion_ingredients.json.
"""

from __future__ import annotations

import sys
import time
from functools import partial

import torch

from helpers import batches, data, diffusion, fid, results, studies, training
from helpers.files import DataError
from tests.pages import NOTEBOOKS, definitions

ADAM = {"optimizer": "adam"}
PAPER = ADAM | {"prediction": "epsilon", "lr": 0.001, "lr_decay": 0.0, "ema_decay": 0.0, "label_dropout": 0.0}
VARIANTS = {
    "all of it": {},
    **{f"Adam in place of Muon, rate {rate}": ADAM | {"lr": rate} for rate in (0.0005, 0.001, 0.002)},
    "no EMA": {"ema_decay": 0.0},
    "constant rate": {"lr_decay": 0.0},
    "neither EMA nor decay": {"ema_decay": 0.0, "lr_decay": 0.0},
    "plain U-Net": {"network": "plain", "widths": [32, 72, 96]},
    "the noise predicted": {"prediction": "epsilon"},
    "paper recipe": PAPER,
    "paper recipe, plain U-Net": PAPER | {"network": "plain", "widths": [32, 72, 96]},
    **{f"P_MEAN {mean}": {"p_mean": mean} for mean in (-0.8, -0.4)},
    "P_MEAN -0.8, P_STD 1.4": {"p_mean": -0.8, "p_std": 1.4},
}


def notebook(**changes) -> dict:
    """Notebook 2's names after the cells that this study needs, at full size but for these changes."""
    starts = "recipe = ", "def mean_loss(", "def train(", "def draw("
    page = definitions(NOTEBOOKS[1], *starts, mocked=False, **changes)
    page["Run"] = partial(page["Run"], save_every=10**6)
    page["sampling"] = {"sigmas": diffusion.karras_sigmas(page["SAMPLER_STEPS"]), "guidance": page["GUIDANCE"],
                        "interval": page["GUIDANCE_INTERVAL"]}  # fmt: skip
    return page


@torch.no_grad()
def loss(denoiser, images, labels) -> torch.Tensor:
    """The EDM loss, whatever the network predicts: the same noise levels and noises for every network."""
    weigh, found = diffusion.Denoiser(denoiser.net).scaling, []
    for i, (x, y) in enumerate(zip(images.split(500), labels.split(500), strict=True)):
        batches.seed_step(0, i)
        sigma, x0 = (-1.2 + 1.2 * torch.randn(len(x))).exp().to(x.device), batches.to_float(x)
        error = denoiser(x0 + sigma[:, None, None, None] * torch.randn_like(x0), sigma, y) - x0
        found.append(error.square().mean(dim=(1, 2, 3)) / weigh(sigma)[1] ** 2)
    return torch.cat(found).mean()


def main(seconds: float = 500, steps: int = 3_000, *titles: str) -> None:
    if unknown := set(titles) - VARIANTS.keys():
        raise SystemExit(f"no such title: {unknown}; there are {[*VARIANTS]}")
    begun, device = time.monotonic(), training.pick_device()
    gpu = device.type == "cuda"
    page = notebook(COMPILE=gpu, BATCH=384, MEASURE="yes", TRAIN="yes", RUNS="runs/ingredients")
    count = 5_000 if page["DATA"] != "demo" else 100
    short = {"steps": steps, "warmup": steps // 15, "ema_decay": 1 - 6 / steps}
    training.allow_tf32(True)  # for the features: the same for every row, and several times faster
    last = page["HELD_OUT"] if page["DATA"] != "demo" else 500
    held_out, labels = (part[-last:].to(device) for part in data.cifar100(page["DATA_ROOT"], "train", page["DATA"]))
    features = studies.judge(page["DATA_ROOT"], device)
    real = features(held_out)
    source = "CIFAR-100" if page["DATA"] != "demo" else "demo shapes"
    about = {"data": source, "batch": page["BATCH"], "seed": page["SEED"], **short, "samples": count,
             "images": len(real), "features": "TF32" if gpu else "float32"}  # fmt: skip
    try:
        rows = results.load_card("diffusion_ingredients", "runs")["rows"]
    except DataError:
        rows = {}
    for title, changes in VARIANTS.items():
        if title in rows or (titles and title not in titles) or time.monotonic() - begun > seconds:
            continue
        torch.compiler.reset()
        r = page["recipe"] | short | changes
        network, history, certificate = page["train"](page["fresh"](r), page["training_images"], r)
        row = {"parameters": certificate["parameters"], "seconds": history["seconds"].sum(),
               "loss": loss(network, held_out, labels)}  # fmt: skip
        for way, guidance in {"fid": page["GUIDANCE"], "fid_unguided": 1.0}.items():
            if guidance == 1 or (short | changes).get("label_dropout", 1):
                options = page["sampling"] | {"guidance": guidance, "batch_size": 1_000 if gpu else 100}
                each, seed = torch.arange(count) * 100 // count, page["SAMPLE_SEEDS"][0]
                found = features(page["draw"](network, each, seed=seed, **options))
                row[way] = round(fid.frechet_distance(found, real), 2)
        rows[title] = row
        card = about | {"rows": rows} | results.environment(device)
        rows = results.save_card("diffusion_ingredients", card, "runs")["rows"]
        print(title, rows[title], f"{time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main(*map(float, sys.argv[1:2]), *map(int, sys.argv[2:3]), *sys.argv[3:])
