"""What the pages measure: by whom, on what, and what is noted of it."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from helpers import classifiers, data, diffusion, fid, results, solvers, studies, unet

CPU = torch.device("cpu")


@pytest.fixture
def net():
    torch.manual_seed(0)
    return classifiers.DigitSumClassifier().eval()


def test_what_a_finished_net_is_measured_by(net, monkeypatch):
    """Each figure from its own set and number of views."""
    asked = []

    def right(of, images, labels, **views):
        asked.append((of, images, views))
        return torch.arange(130.0) + len(asked)

    monkeypatch.setattr(studies, "right", right)
    history = {"loss": torch.arange(1500.0), "accuracy": torch.arange(1500.0), "seconds": torch.full((1500,), 2.0)}
    weak = {"degrees": 1.0}
    row = studies.accuracies(net, history, 7, unseen=("unseen", 0), test=("test", 0), views=3, jitter=weak)
    more = {"views": 3, "jitter": weak}
    assert asked == [(net, "test", {}), (net, "unseen", {}), (net, "test", more)]
    assert (row["seed"], row["seconds"], row["train_loss"], row["train_accuracy"]) == (7, 3000, 999.5, 999.5)
    assert [float(row[f"{of}_accuracy"]) for of in ("test", "unseen")] == [65.5, 66.5]
    assert float(row["test_accuracy_tta"]) == 67.5
    means = [float(part.mean()) for part in (torch.arange(130.0) + 1).split(64)]
    assert float(row["test_accuracy_std_over_batches"]) == pytest.approx(np.std(means, ddof=1))
    images, labels = data.digits("", "test")
    read = classifiers.predict(net.reader, images[:, None]).argmax(dim=1)
    assert row["misread_digits"].tolist() == np.flatnonzero(read != labels).tolist()


def test_right_is_right(net, monkeypatch):
    answers = F.one_hot(torch.tensor([3, 4, 5]), 20).float()
    monkeypatch.setattr(classifiers, "predict", lambda of, images, **how: answers)
    assert studies.right(net, None, torch.tensor([3, 0, 5])).tolist() == [1, 0, 1]


def test_variants_are_trained_by_their_own_recipe_and_judged_by_unseen_digits(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "addnist", lambda root, split, source: (root, split, source))
    judged, trained = [], []

    def right(of, root, split, source):
        judged.append((root, split, source))
        return torch.tensor([1.0, float(of)])

    def train(make, seed, **changes):
        trained.append((make, seed, changes))
        return len(trained), None, {"parameters": 7}

    monkeypatch.setattr(studies, "right", right)
    recipe, rows = {"data": "rebuilt", "lr": 1, "ema": 2}, {"a": ("net a", {}), "b": ("net b", {"lr": 3})}
    card = studies.variants("study", rows, train, recipe, [4, 5], "root", now=True, runs=tmp_path, device=CPU)
    assert trained == [("net a", 4, recipe), ("net a", 5, recipe), ("net b", 4, recipe | {"lr": 3}),
                       ("net b", 5, recipe | {"lr": 3})]  # fmt: skip
    assert set(judged) == {("root", "unseen", "rebuilt")}
    assert card["rows"]["b"] == {"parameters": 7, "unseen_accuracy": [2.0, 2.5]}
    assert card["settings"] == recipe | {"seeds": [4, 5], "variants": {"a": {}, "b": {"lr": 3}}}
    again = studies.variants("study", rows, None, recipe, [4, 5], "root", now=False, runs=tmp_path, device=CPU)
    assert again == card


def test_short_runs_have_a_warm_up_and_an_ema_of_their_length(monkeypatch):
    seen = {}
    monkeypatch.setattr(studies, "variants", lambda name, rows, **how: seen.update(how, name=name, rows=rows))
    recipe = {"steps": 10_000, "batch": 192, "warmup": 200, "ema_decay": 0.999}
    studies.ingredients(recipe, [0], 400, 64)
    short = {"steps": 400, "batch": 64, "warmup": 8, "ema_decay": pytest.approx(0.975)}
    assert seen["recipe"] == short
    full = classifiers.DigitSumClassifier
    assert seen["rows"] == {
        "all ingredients": (full, {}), "learned sum": (classifiers.LearnedSum, {}),
        "separate readers": (classifiers.SeparateReaders, {}), "no batch norm": (classifiers.no_batch_norm, {}),
        "no augmentation": (full, {"jitter": {}}), "no EMA": (full, {"ema_decay": 0.0}),
        "constant learning rate": (full, {"lr_decay": 0.0}),
    }  # fmt: skip
    studies.ingredients(recipe, [0], 5, 64)
    assert seen["recipe"]["ema_decay"] == 0
    studies.ingredients(recipe | {"steps": 6}, [0], 400, 64)  # longer than the run itself
    assert (seen["recipe"]["warmup"], seen["recipe"]["ema_decay"]) == (200, pytest.approx(0.999))


def test_the_questions_are_asked_of_these_nets_by_these_recipes(monkeypatch):
    seen = {}
    monkeypatch.setattr(studies, "variants", lambda name, rows, **how: seen.update(how, name=name, rows=rows))
    studies.questions({"lr": 5}, 7, 0.003, 64, train="train")
    assert seen.pop("rows") == {
        "learned sum": (classifiers.LearnedSum, {"batch": 64}),
        "paper net, twice as deep": (classifiers.DeeperPaperClassifier, {"lr": 0.003}),
        "digit-sum net, told every digit": (classifiers.ToldDigits, {"told": True}),
    }
    assert seen == {"name": "classifier_questions", "recipe": {"lr": 5}, "seeds": [7], "train": "train"}


def test_a_card_is_judged_by_the_sets_that_it_names(monkeypatch):
    monkeypatch.setattr(data, "addnist", lambda root, split, source: (torch.zeros(1) + len(split), torch.zeros(1)))
    monkeypatch.setattr(studies, "accuracies", lambda *run, **how: (run, how))
    logs = [{"loss": torch.ones(4), "seconds": torch.ones(4)}] * 2
    made = {"data": "rebuilt", "jitter": {"degrees": 4.0}}
    finished = [
        ("a", logs[0], {"parameters": 1, "settings": made | {"seed": 4}}),
        ("b", logs[1], {"parameters": 2, "settings": made | {"seed": 5}}),
    ]
    card = studies.classifier_card(finished, "root", 3, 0.25)
    assert (card["data"], card["view_jitter"]) == ("AddNIST rebuilt from MNIST", 0.25)
    assert card["settings"] == made | {"seed": 4}  # those that it was trained by
    assert [run[::2] for run, _ in card["seeds"]] == [("a", 4), ("b", 5)]
    how = card["seeds"][0][1]
    assert (float(how["unseen"][0]), float(how["test"][0])) == (6, 4)  # the lengths of their names
    assert (how["views"], how["jitter"], card["views"], card["parameters"]) == (3, {"degrees": 1.0}, 3, 1)
    assert [*card["data_sha256"]] == ["train", "valid", "unseen", "test"]
    assert "train: last 4 steps" in card["protocol"]


def test_labels_and_names_of_what_is_trained_on(monkeypatch):
    studies.to_train_on.cache_clear()
    images, labels = studies.to_train_on("", "demo", CPU)
    assert len(images) == 8_000
    assert torch.equal(studies.to_train_on("", "demo", CPU, told=True)[1].sum(dim=1) - 1, labels)
    studies.to_train_on.cache_clear()


@pytest.mark.parametrize("count", [50, 150, 2_048])
def test_samples_are_spread_over_the_classes(count, monkeypatch):
    """Those of the FID, each seed's, and those of the sweep; each by the net and the settings that its row says."""
    drawn = []

    def draw(net, labels, *, seed, **how):
        drawn.append((net, labels, seed, how))
        return torch.full((len(labels),), float(len(drawn)))  # known again by its place

    monkeypatch.setattr(fid, "judge", lambda found, real: dict.fromkeys(("fid", "kid"), float(found[0])))
    sampling = {"sigmas": diffusion.karras_sigmas(4), "guidance": 1.5, "interval": (0.0, 80.0)}
    by = lambda labels, **how: draw("ours", labels, **how)  # noqa: E731
    cifar = {"test": (torch.zeros(9), None), "train": (torch.arange(100.0, 50_100), torch.arange(50_000) % 100)}
    monkeypatch.setattr(data, "cifar100", lambda root, split: cifar[split])
    seen = []
    found = studies.fid_of(by, lambda x: seen.append(x) or x, "", sampling, count, [1, 2], {}, CPU)
    assert found["fid_by_seed"] == [1.0, 2.0]
    assert found["protocol"] == f"clean-fid features, {count:,} samples against the 9 CIFAR-100 test images"
    assert found["fid_of_training_images"] == 100.0  # the first image's feature
    rank, label = (seen[-1] - 100).long().div(100, rounding_mode="floor"), (seen[-1] - 100).long() % 100
    assert torch.equal(label.bincount(minlength=100), (torch.arange(count) * 100 // count).bincount(minlength=100))
    assert rank.max() == (count - 1) // 100  # the first of each class
    assert found["fid"] == 1
    assert (found["n"], found["denoiser_evaluations"]) == (count, 8)
    assert found["sampler"] == "DPM-Solver++ (2M), 4 steps, guidance 1.5 for σ in (0.0, 80.0)"
    plain = studies.fid_of(by, lambda x: x, "", sampling | {"guidance": 1.0}, count, [1], {}, CPU)
    assert plain["sampler"].endswith("no guidance")
    ddpm = sampling | {"sigmas": diffusion.ddpm_sigmas(50), "solver": solvers.ddpm_steps}
    other = studies.fid_of(by, lambda x: x, "", ddpm, count, [1, 2], found, CPU)  # not known yet
    assert other["sampler"] == "DDPM, 50 steps from σ = 130 to 0.01, guidance 1.5 for σ in (0.0, 80.0)"
    drawn.clear()
    studies.fid_of(by, lambda x: x, "", sampling, count, [1, 2], {}, CPU)
    assert [(seed, how) for _, _, seed, how in drawn] == [(1, sampling), (2, sampling)]
    assert studies.fid_of(None, None, "", sampling, count, [1, 2], found, CPU) == found  # known
    default = {"steps": 6, "guidance": 2.0, "interval": [0.3, 6.0], "neon": 1.0}
    ours = {"sigmas": diffusion.karras_sigmas(6), "guidance": 2.0, "interval": (0.3, 6.0)}
    trained = {"held_out": 3 * count, "neon": {"weight": 1.0, "of": "it"}}
    train, judged = torch.arange(5 * count), []
    monkeypatch.setattr(data, "cifar100", lambda root, split: {("there", "train"): (train, None)}[root, split])
    features = lambda x: judged.append(x) or x  # noqa: E731
    bases = {"it": "without", "another": "no"}
    swept = studies.sweep("with", trained, bases, draw, features, "there", ours, 3, count)
    assert torch.equal(judged[0], train[2 * count : 4 * count])  # of those held out
    assert swept["images"] == 2 * count
    rows = [{key: row[key] for key in default} for row in swept["rows"]]
    assert rows[0] == default
    assert rows[-1] == default | {"neon": 0.0}
    assert all(sum(row[key] != default[key] for key in default) == 1 for row in rows[1:])
    assert [row["fid"] for row in swept["rows"]] == [float(i) for i in range(3, 3 + len(rows))]
    for (net, _, seed, how), row in zip(drawn[2:], swept["rows"], strict=True):
        assert net == ("with" if row["neon"] else "without")
        assert seed == 3
        assert (len(how["sigmas"]) - 1, how["guidance"], how["interval"]) == (
            row["steps"],
            row["guidance"],
            row["interval"],
        )
        assert row["evaluations"] == diffusion.evaluations(**how)
    for _, labels, _, _ in drawn:
        counts = labels.bincount(minlength=100)
        assert len(labels) == count
        assert counts.max() - counts.min() <= 1


def test_a_net_that_cannot_be_guided_is_swept_by_steps_and_neon_alone(monkeypatch):
    monkeypatch.setattr(fid, "judge", lambda found, real: {"fid": 1.0})
    monkeypatch.setattr(data, "cifar100", lambda root, split: (torch.zeros(9), None))
    ours = {"sigmas": diffusion.karras_sigmas(20), "guidance": 1.0, "interval": (0.0, 6.0)}
    draw = lambda net, labels, **how: labels  # noqa: E731
    swept = studies.sweep("net", {"held_out": 8}, {"it": "base"}, draw, lambda x: x, "", ours, 0, 4)
    assert [(row["steps"], row["neon"]) for row in swept["rows"]] == [(20, 0), (10, 0), (14, 0), (30, 0)]
    neon = {"held_out": 8, "neon": {"weight": 1.5, "of": "it"}}
    swept = studies.sweep("net", neon, {"it": "base"}, draw, lambda x: x, "", ours, 0, 4)
    assert [(row["steps"], row["neon"]) for row in swept["rows"][3:]] == [(30, 1.5), (20, 0)]
    shipped = results.load_card("diffusion")["settings"]
    swept = studies.sweep("net", shipped, {"it": "base"}, draw, lambda x: x, "", ours, 0, 4)
    assert {row["neon"] for row in swept["rows"]} == {shipped["neon"]["weight"]}  # the one before it is not here


def test_cost_is_that_of_one_image_and_an_evaluation_a_third_of_it():
    card = {"steps": 10, "seconds": 2.0, "device": "here", "settings": results.load_card("diffusion")["settings"]}
    denoiser = unet.build_denoiser(card["settings"])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        denoiser(torch.zeros(1, 3, 32, 32), 1.0, torch.zeros(1, dtype=torch.long))
    said = studies.cost(card)
    total, one = (float(part.split()[0]) for part in said.split("; ")[0].split(", "))
    assert one == pytest.approx(counter.get_total_flops() / 1e9, rel=0.03)  # counted without a gradient
    assert total == pytest.approx(3 * one, rel=0.02)
    assert f"here: {10 * card['settings']['batch'] / 2:,.0f} images/s" in said


def test_the_loss_by_level_is_that_of_each_set_under_the_same_noise():
    torch.manual_seed(0)
    denoiser = diffusion.Denoiser(unet.UNet((8, 8), (1, 1), loops=(1, 1)))
    images, labels = (part[:3] for part in data.photographs())
    curves = studies.loss_by_level(
        denoiser, {"a": (images, labels), "b": (images, labels), "c": (255 - images, labels)}, 3
    )
    assert torch.equal(curves["a images"][1], curves["b images"][1])
    assert not torch.equal(curves["a images"][1], curves["c images"][1])
    assert len(curves["a images"][0]) == 12


def test_what_loads_measures_and_counts_leaves_the_random_numbers_as_they_were():
    def used():
        denoiser, card = studies.load_denoiser("diffusion_paper", results.WEIGHTS)
        studies.cost(card)
        studies.loss_by_level(denoiser, {"a": tuple(part[:1] for part in data.photographs())}, 1)

    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    used()
    assert torch.equal(torch.rand(2), expected)


def test_everywhere_is_every_level_that_is_visited():
    everywhere = next(change["interval"] for change in studies.CHANGES if change.get("interval", [1])[0] == 0)
    assert everywhere[1] >= float(diffusion.karras_sigmas(30)[0])
