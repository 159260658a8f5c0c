"""What page 3 measures between samples: ways, their smoothness, their middles, and real images there and back."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from helpers import diffusion, fid, interpolation, solvers
from helpers.interpolation import lerp, slerp, switch

Features = Callable[[Tensor], Tensor]  # images uint8 (N, 3, H, W) -> (N, D)

REPORT, SWITCHED = "DDPM, fresh noise; class switches", "DDPM, shared noise; class switches"
SHARED, STRAIGHT = "DDPM, shared noise; class slerp", "deterministic, noise lerp; class lerp"
GLIDE = "deterministic, noise slerp; class slerp"


def ways(sampling: dict, ancestral_steps: int) -> dict[str, dict]:
    """Ways from one sample to another, name -> arguments of `interpolation.between`; sampling: of the deterministic."""
    ddpm = sampling | {"sigmas": diffusion.ddpm_sigmas(ancestral_steps), "solver": solvers.ddpm_steps}
    return {
        REPORT: ddpm | {"fresh_noise": True, "class_way": switch},
        "DDPM, fresh noise; class slerp": ddpm | {"fresh_noise": True},
        SWITCHED: ddpm | {"class_way": switch},
        SHARED: ddpm,
        "deterministic, noise slerp; class switches": sampling | {"class_way": switch},
        GLIDE: sampling,
        "deterministic, noise slerp; class lerp": sampling | {"class_way": lerp},
        "deterministic, noise lerp; class slerp": sampling | {"way": lerp, "class_way": slerp},
        STRAIGHT: sampling | {"way": lerp},
    }


def about(by: dict[str, dict], rows: int, seed: int) -> dict:
    """What figures of these ways depend on, read off the ways themselves, for a card."""
    glide, ancestral = by[GLIDE], by[SHARED]
    return {
        "rows": rows,
        "sampler_steps": len(glide["sigmas"]) - 1,
        "guidance": glide["guidance"],
        "seed": seed,
        "interval": glide["interval"],
        "ancestral_steps": len(ancestral["sigmas"]) - 1,
    }


def smoothness(denoiser: nn.Module, by: dict[str, dict], features: Features, pairs: int, rows: int, seed: int) -> dict:
    """Length and unevenness of each way, over random pairs, with 4 (rows - 1) + 1 frames and fewer."""
    labels = torch.randint(100, (2, pairs), generator=torch.Generator().manual_seed(seed))
    noises = tuple(diffusion.starting_noise(pairs, seed + more) for more in (2, 3))
    fine = torch.linspace(0, 1, 4 * (rows - 1) + 1)

    def path(where: Tensor, options: dict) -> Tensor:
        frames = interpolation.between(denoiser, tuple(labels), noises, where, **options)
        return features(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])  # (F, P, D)

    paths = {name: path(fine, options) for name, options in by.items()}
    found = {name: interpolation.smoothness(of, every=(4, 2, 1)) for name, of in paths.items()}
    places = interpolation.retime(fine, interpolation.step_lengths(paths[GLIDE]), rows)
    found[f"{GLIDE}; re-timed"] = interpolation.smoothness(path(places, by[GLIDE]))
    return {"pairs": pairs, "rows": found}


def middles(denoiser: nn.Module, sampling: dict, features: Features, test: Tensor, count: int, seed: int) -> dict:
    """FID, and distance of mean features, from twice as many test images: of starting points and of midpoints."""
    real = features(test[: 2 * count])
    start, end = torch.randint(100, (2, count), generator=torch.Generator().manual_seed(seed + 1))
    noises = tuple(diffusion.starting_noise(count, seed + more) for more in (4, 5))
    kinds = {
        "starting points": ((start, start), 0.0, {}),
        "slerp of noise": ((start, start), 0.5, {}),
        "lerp of noise": ((start, start), 0.5, {"way": lerp}),
        "slerp of noise and class": ((start, end), 0.5, {}),
        "lerp of noise and class": ((start, end), 0.5, {"way": lerp}),
        "slerp of noise, lerp of class": ((start, end), 0.5, {"class_way": lerp}),
    }
    rows = {}
    for name, (labels, position, how) in kinds.items():
        found = features(interpolation.between(denoiser, labels, noises, [position], **how, **sampling)[0])
        distances = {"fid": fid.frechet_distance(found, real), "mean_distance": fid.mean_distance(found, real)}
        rows[name] = distances
    return {"images_each": count, "test_images": len(real), "rows": rows}


def there_and_back(denoiser: nn.Module, images: Tensor, labels: Tensor, steps: int) -> tuple[Tensor, Tensor, dict]:
    """Images up to their noise and down again by Heun's method: the noise, the images drawn from it, the figures."""
    heun = {"sigmas": diffusion.karras_sigmas(steps), "solver": solvers.heun_steps}
    noise = interpolation.invert(denoiser, images, labels, heun["sigmas"])
    again = diffusion.sample(denoiser, labels, noise=noise, **heun)
    psnr, evaluations = interpolation.psnr(images, again), diffusion.evaluations(**heun)
    figures = {"n": len(psnr), "steps": steps, "psnr": psnr.mean(), "psnr_std_over_images": psnr.std()}
    return noise, again, figures | {"denoiser_evaluations_there_and_back": 2 * evaluations - 1}  # there, 0 is left out
