"""What page 3 measures: by which way, from which noise, and what is noted of it."""

from types import SimpleNamespace

import pytest
import torch

from helpers import data, diffusion, fid, interpolation, solvers, unet, walks


def test_midpoints_and_starting_points_are_drawn_as_they_are_called(monkeypatch):
    """Where, by which way, and with which labels each row was drawn."""
    drawn, judged, asked = {}, [], []
    monkeypatch.setattr(fid, "frechet_distance", lambda found, real: judged.append(len(real)) or float(found))
    monkeypatch.setattr(fid, "mean_distance", lambda found, real: 0.0)

    def between(denoiser, labels, noises, positions, *, way="slerp", class_way=None, **sampling):
        assert not torch.equal(*noises)
        asked.append(torch.stack(labels))
        drawn[float(len(drawn))] = positions, way, class_way or way, torch.equal(*labels)
        return [len(drawn) - 1.0]

    monkeypatch.setattr(interpolation, "between", between)
    monkeypatch.setattr(walks, "lerp", "lerp")
    rows = walks.middles(None, {}, lambda images: images, torch.zeros(9), 4, 0)["rows"]
    assert set(judged) == {8}  # twice as many test images as midpoints
    assert {name: drawn[row["fid"]] for name, row in rows.items()} == {
        "starting points": ([0.0], "slerp", "slerp", True), "slerp of noise": ([0.5], "slerp", "slerp", True),
        "lerp of noise": ([0.5], "lerp", "lerp", True), "slerp of noise and class": ([0.5], "slerp", "slerp", False),
        "lerp of noise and class": ([0.5], "lerp", "lerp", False),
        "slerp of noise, lerp of class": ([0.5], "slerp", "lerp", False),
    }  # fmt: skip
    first, state = asked[:], torch.get_rng_state()
    asked.clear()
    walks.middles(None, {}, lambda images: images, torch.zeros(9), 4, 0)
    assert all(map(torch.equal, first, asked))  # of the seed alone
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_noted_of_the_ways_is_read_off_them():
    sampling = {"sigmas": diffusion.karras_sigmas(6), "guidance": 2.0, "interval": (0.1, 5.0)}
    assert walks.about(walks.ways(sampling, 9), 4, 3) == {
        "rows": 4, "sampler_steps": 6, "guidance": 2.0, "seed": 3, "interval": (0.1, 5.0), "ancestral_steps": 9,
    }  # fmt: skip


def test_each_way_is_what_its_name_says():
    sampling = {"sigmas": "ours", "guidance": 2.0}
    for name, how in walks.ways(sampling, 7).items():
        assert how["guidance"] == 2
        assert (how.get("solver") is solvers.ddpm_steps) == name.startswith("DDPM")
        assert how.get("fresh_noise", False) == ("fresh" in name)
        noise, by_class = how.get("way", interpolation.slerp), how.get("class_way", how.get("way", interpolation.slerp))
        named = {"lerp": interpolation.lerp, "slerp": interpolation.slerp, "switches": interpolation.switch}
        assert by_class is named[name.rpartition(" ")[2]]
        if name.startswith("deterministic"):
            assert noise is named[name.split(";")[0].rpartition(" ")[2]]
            assert how["sigmas"] == "ours"


def test_there_and_back_says_how_well_and_at_what_price():
    torch.manual_seed(0)
    denoiser = diffusion.Denoiser(unet.UNet((8, 8), (1, 1), loops=(1, 1))).eval()
    images, labels = (part[:2] for part in data.photographs())
    noise, again, figures = walks.there_and_back(denoiser, images, labels, 4)
    assert noise.shape == images.shape
    assert float(figures["psnr"]) == pytest.approx(float(interpolation.psnr(images, again).mean()))
    assert figures["denoiser_evaluations_there_and_back"] == 6 + 7
    assert (figures["n"], figures["steps"]) == (2, 4)


def test_smoothness_is_measured_of_each_way_and_of_the_glide_timed_anew(monkeypatch):
    asked = []

    def between(denoiser, labels, noises, where, **how):
        assert not torch.equal(*noises)
        asked.append((where, how))
        return torch.arange(float(len(where)))[:, None, None].expand(-1, 3, 2) ** how["way"]

    monkeypatch.setattr(interpolation, "between", between)
    by = {walks.GLIDE: {"way": 1}, walks.REPORT: {"way": 2}}  # by the one, frames are evenly spaced
    found = walks.smoothness(SimpleNamespace(), by, lambda frames: frames, 3, 4, 0)
    assert [*found["rows"]] == [walks.GLIDE, walks.REPORT, f"{walks.GLIDE}; re-timed"]
    assert [len(where) for where, _ in asked] == [13, 13, 4]
    assert asked[2][0].shape == (4, 3)  # each pair's own
    assert asked[2][1] == {"way": 1}
    torch.testing.assert_close(asked[2][0][:, 0], torch.linspace(0, 1, 4))  # an even path stays as it is
    assert [*found["rows"][walks.GLIDE]["length"]] == [4, 7, 13]


def test_middles_are_as_far_from_the_test_images_as_the_judges_say(monkeypatch):
    """By features that are known: each kind of midpoint moved by another distance, the test images at 0."""
    generator, moved = torch.Generator().manual_seed(0), iter(range(1, 7))
    made = []

    def between(*_, **__):
        made.append(torch.randn(400, 3, generator=generator) + next(moved))
        return made[-1][None]

    monkeypatch.setattr(interpolation, "between", between)
    test = torch.randn(900, 3, generator=generator)
    rows = walks.middles(None, {}, lambda features: features, test, 400, 0)["rows"]
    for i, row in enumerate(rows.values()):
        assert row["mean_distance"] == pytest.approx(3**0.5 * (i + 1), rel=0.1)
        assert row["fid"] == pytest.approx(fid.frechet_distance(made[i], test[:800]))
