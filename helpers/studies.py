"""What the pages measure around a net: variants, and ways to draw. Each study fills a result card.

The nets, `train` and the judges come in as arguments; what is measured is what was handed in, and so is what is noted.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from helpers import classifiers, data, diffusion, fid, results, solvers, unet
from helpers.batches import seeded
from helpers.live import Line

Features = Callable[[Tensor], Tensor]  # images uint8 (N, 3, H, W) -> (N, D)


# The classifier.


def right(net: nn.Module, images: Tensor, labels: Tensor, **views) -> Tensor:
    """Which images a net answers correctly: float (N,) of 0 and 1; further arguments as of `classifiers.predict`."""
    return (classifiers.predict(net, images, **views).argmax(dim=1) == labels.cpu()).float()


def accuracies(net: nn.Module, history: dict, seed: int, unseen: tuple, test: tuple, **views) -> dict:
    """What the card says of a run: of its last steps (1,000 at most), of its net on unseen digits and the test set.

    unseen and test: (images, labels); views: arguments of `right`, for test-time augmentation.
    """
    loss, correct = (history[name][-1000:] for name in ("loss", "accuracy"))
    hits = right(net, *test)
    row = {
        "seed": seed,
        "seconds": history["seconds"].sum(),
        "train_loss": loss.mean(),
        "train_accuracy": correct.mean(),
        "train_accuracy_std_over_batches": correct.std(),
        "unseen_accuracy": right(net, *unseen).mean(),
        "test_accuracy": hits.mean(),
        "test_accuracy_std_over_batches": torch.stack([batch.mean() for batch in hits.split(64)]).std(),
        "test_accuracy_tta": right(net, *test, **views).mean(),
    }
    if hasattr(net, "reader"):
        images, labels = data.digits("", "test")
        read = classifiers.predict(net.reader, images[:, None]).argmax(dim=1)
        row["misread_digits"] = (read != labels).nonzero()[:, 0]
    return row


def classifier_card(finished: list[tuple], root: str, views: int, share: float) -> dict:
    """What a result card says of a net that was trained once for each seed.

    finished: what the page's `train` returned of each, (net, history, certificate), with the settings it trained by.
    root: of the data. views: of test-time augmentation, which jitters by this share of what training does.
    """
    nets, histories, certificates = zip(*finished, strict=True)
    seeds, source = [of["settings"]["seed"] for of in certificates], certificates[0]["settings"]["data"]
    jitter = {way: share * most for way, most in certificates[0]["settings"]["jitter"].items()}
    sets = {split: data.addnist(root, split, source) for split in ("train", "valid", "unseen", "test")}
    judged = partial(accuracies, unseen=sets["unseen"], test=sets["test"], views=views, jitter=jitter)
    return certificates[0] | {
        "data": data.ADDNIST[source],
        "views": views,
        "view_jitter": share,
        "data_sha256": {split: data.fingerprint(*pair) for split, pair in sets.items()},
        "protocol": "trained on train and valid; test: ± over batches of 64; train: "
        f"last {min(1_000, len(histories[0]['loss'])):,} steps; EMA, of the first seed",
        "seeds": [judged(*run) for run in zip(nets, histories, seeds, strict=True)],
        "history": results.thinned(histories, 100),
    }


@lru_cache(maxsize=2)
def to_train_on(root: str, source: str, device: torch.device, told: bool = False) -> tuple[Tensor, Tensor]:
    """AddNIST's training and validation images, on the device, and their labels (N,); or, told, their digits (N, 3)."""
    parts = zip(*(data.addnist(root, split, source) for split in ("train", "valid")), strict=True)
    images, labels = map(torch.cat, parts)
    labels = data.digit_names(images, data.digits(root, "train", source)) if told else labels
    return images.to(device), labels.to(device)


def variants(
    name: str, rows: dict[str, tuple], train: Callable, recipe: dict, seeds: list[int], root: str, **card
) -> results.Card:
    """The card of nets trained otherwise, judged by images of unseen digits.

    rows: title -> (net, changes of the recipe), each trained once for each seed.
    train(make, seed, **changes) -> (net, history, certificate); card: what `results.measured` takes.
    """

    def measure() -> dict:
        unseen, found = data.addnist(root, "unseen", recipe["data"]), {}
        for title, (make, changes) in rows.items():
            nets, _, made = zip(*(train(make, seed, **recipe | changes) for seed in seeds), strict=True)
            accuracies = [right(net, *unseen).mean() for net in nets]
            found[title] = {"parameters": made[0]["parameters"], "unseen_accuracy": accuracies}
        return {"rows": found}

    how = recipe | {"seeds": seeds, "variants": {title: changes for title, (_, changes) in rows.items()}}
    return results.measured(name, measure, settings=how, **card)


def ingredients(recipe: dict, seeds: list[int], steps: int, batch: int, **study) -> results.Card:
    """The ablation: short runs, each without one ingredient; warm-up and EMA scaled to them. study: of `variants`."""
    full, share = classifiers.DigitSumClassifier, min(1.0, steps / recipe["steps"])
    warmup, ema_decay = round(recipe["warmup"] * share), max(0.0, 1 - (1 - recipe["ema_decay"]) / share)
    rows = {
        "all ingredients": (full, {}),
        "learned sum": (classifiers.LearnedSum, {}),
        "separate readers": (classifiers.SeparateReaders, {}),
        "no batch norm": (classifiers.no_batch_norm, {}),
        "no augmentation": (full, {"jitter": {}}),
        "no EMA": (full, {"ema_decay": 0.0}),
        "constant learning rate": (full, {"lr_decay": 0.0}),
    }
    short = {"steps": steps, "batch": batch, "warmup": warmup, "ema_decay": ema_decay}
    return variants("classifier_ingredients", rows, recipe=recipe | short, seeds=seeds, **study)


def questions(recipe: dict, seed: int, paper_lr: float, batch: int, **study) -> results.Card:
    """Runs of all steps: the sum learnt, by smaller batches; a deeper paper net; the reader told every digit's name."""
    rows = {
        "learned sum": (classifiers.LearnedSum, {"batch": batch}),
        "paper net, twice as deep": (classifiers.DeeperPaperClassifier, {"lr": paper_lr}),
        "digit-sum net, told every digit": (classifiers.ToldDigits, {"told": True}),
    }
    return variants("classifier_questions", rows, recipe=recipe, seeds=[seed], **study)


# The diffusion model.


def load_denoiser(name: str, folder: str | Path, device: torch.device | str = "cpu") -> tuple:
    """The denoiser that weights are of, filled with them, and its card. Raises DataError."""
    card = results.load_card(name, folder)
    with seeded(0, 0):  # weights at random, until the trained ones take their place
        denoiser = unet.build_denoiser(card["settings"], device)
    return denoiser, results.load_weights(name, denoiser, folder, unet.PROBE)


def standard(card: dict) -> dict:
    """How the pages draw, as arguments of `diffusion.sample`: twenty steps, guided where labels were hidden."""
    guided = {"guidance": 2.5, "interval": (0.05, 6.0)} if card["settings"]["label_dropout"] else {}
    return {"sigmas": diffusion.karras_sigmas(20), **guided}


def judge(root: str | Path, device: torch.device) -> Features:
    """`fid.features` by the FID network, which is fetched where it is not in `root`, counting aloud."""
    return partial(fid.features, network=fid.load_network(root, device), device=device, progress=Line("features"))


def _spread(count: int) -> Tensor:
    """So many labels, as many of each class."""
    return torch.arange(count) * 100 // count


def loss_by_level(denoiser: nn.Module, sets: dict[str, tuple], count: int, seed: int = 0) -> dict[str, tuple]:
    """Name -> (noise levels, mean loss of `count` images there), by the same noise; sets: name -> (images, labels)."""
    device, curves = next(denoiser.parameters()).device, {}
    sigmas = (-1.2 + 1.2 * torch.linspace(-2, 2, 12)).exp()  # where EDM trains
    for name, of in sets.items():
        images, labels = (part[:count].to(device) for part in of)
        with torch.no_grad(), seeded(seed, 0):
            each = [sigma.expand(len(images)).to(device) for sigma in sigmas]
            losses = [diffusion.loss(denoiser, images, labels, sigma) for sigma in each]
        curves[f"{name} images"] = sigmas, torch.stack(losses).mean(dim=1).cpu()
    return curves


def fid_of(
    draw: Callable,
    features: Features,
    root: str | Path,
    sampling: dict,
    samples: int,
    seeds: list[int],
    known: dict,
    device: torch.device,
    amp: torch.dtype = torch.float32,
) -> dict:
    """The judges' figures of so many samples, of each class as many: those of the first seed, and each seed's FID.

    draw(labels, seed=…, **sampling) -> images; root: where CIFAR-100 is, whose test images judge; sampling: arguments
    of `diffusion.sample`. known: figures that are there, and returned where they were measured like this. device, amp:
    what was drawn on and in, for the card. So that one sees what a perfect sampler would get, as many training images
    are judged as well.
    """
    sigmas, solver = sampling["sigmas"], sampling.get("solver", solvers.dpm_solver_steps)
    (how,) = (name for name, of in solvers.SOLVERS.items() if of is solver)
    how += f", {len(sigmas) - 1} steps"
    if not torch.equal(sigmas, diffusion.karras_sigmas(len(sigmas) - 1)):
        how += f" from σ = {sigmas[0]:.3g} to {sigmas[-2]:.1g}"
    guided = "guidance {guidance} for σ in {interval}" if sampling.get("guidance", 1) != 1 else "no guidance"
    test, (images, labels) = data.cifar100(root, "test")[0], data.cifar100(root, "train")
    about = {
        "n": samples,
        "seeds": seeds,
        "protocol": f"clean-fid features, {samples:,} samples against the {len(test):,} CIFAR-100 test images",
        "sampler": f"{how}, {guided.format(**sampling)}",
        "denoiser_evaluations": diffusion.evaluations(**sampling),
        "drawn_in": str(amp),
    }
    if all(known.get(key) == value for key, value in about.items()):
        return known
    real, counts = features(test), enumerate(_spread(samples).bincount(minlength=100))
    as_many = torch.cat([(labels == label).nonzero()[:count, 0] for label, count in counts])
    found = [fid.judge(features(draw(_spread(samples), seed=seed, **sampling)), real) for seed in seeds]
    found[0] |= {"fid_of_training_images": fid.judge(features(images[as_many]), real)["fid"]}
    return found[0] | {"fid_by_seed": [one["fid"] for one in found]} | about | results.environment(device)


CHANGES = [{"steps": steps} for steps in (10, 14, 30)] + [{"guidance": scale} for scale in (1.0, 2.0, 3.0)]
CHANGES += [{"interval": [0.0, 80.0]}, {"interval": [0.3, 6.0]}]  # everywhere; not where the noise is faint


def sweep(
    denoiser: nn.Module,
    trained: dict,
    bases: dict[str, nn.Module],
    draw: Callable,
    features: Features,
    root: str | Path,
    sampling: dict,
    seed: int,
    samples: int = 1_000,
) -> dict:
    """Samples from the same noises by other settings, judged by twice as many held-out images; the first row is ours.

    denoiser, trained: our net, and the settings of its run. They say how many of CIFAR-100's last training images, at
    `root`, it has not seen, and which of `bases`, fingerprint -> net, it was before Neon. draw(denoiser, labels,
    seed=…, **sampling) -> images. sampling: "sigmas", "guidance" and "interval" as the page draws; `CHANGES` and the
    net before Neon change one each. Without label dropout nothing can guide, so a guidance of 1 stays.
    """
    neon, guided = trained.get("neon", {}), sampling["guidance"] != 1
    weight = neon.get("weight", 0.0)
    nets = {weight: denoiser}
    if neon.get("of") in bases:
        nets[0.0] = bases[neon["of"]]
    images = data.cifar100(root, "train")[0][-trained["held_out"] :]
    real, steps = features(images[: 2 * samples]), len(sampling["sigmas"]) - 1
    default = {"steps": steps, "guidance": sampling["guidance"], "interval": list(sampling["interval"])}
    rows = [default | {"neon": weight}]
    for change in [*CHANGES, *({"neon": of} for of in nets)]:
        if rows[0] | change != rows[0] and ("steps" in change or "neon" in change or guided):
            rows.append(rows[0] | change)
    for i, row in enumerate(rows):
        how = {
            "guidance": row["guidance"],
            "interval": row["interval"],
            "sigmas": diffusion.karras_sigmas(row["steps"]),
        }
        drawn = features(draw(nets[row["neon"]], _spread(samples), seed=seed, **how))
        rows[i] = row | {"evaluations": diffusion.evaluations(**how)} | fid.judge(drawn, real)
    return {"data": "CIFAR-100", "samples": samples, "images": len(real), "seed": seed, "rows": rows}


def cost(card: dict) -> str:
    """One line: the arithmetic of training on one image, and what the run of a card made of its device.

    Convolutions and linear layers are counted, and a third of a training step taken for one evaluation.
    """
    images, labels = data.photographs()
    with FlopCounterMode(display=False) as counter, seeded(0, 0):
        diffusion.loss(unet.build_denoiser(card["settings"]), images, labels, torch.ones(len(images))).mean().backward()
    flops = counter.get_total_flops() / len(images)
    speed = card["steps"] * card["settings"]["batch"] / max(card["seconds"], 1)
    return (
        f"{flops / 1e9:.2f} GFLOP to train on one image, {flops / 3e9:.2f} for one evaluation; "
        f"{card['device']}: {speed:,.0f} images/s, {speed * flops / 1e12:.2f} TFLOP/s"
    )
