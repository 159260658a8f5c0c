"""What must hold for the notebooks as files; pytest runs them too, through nbmake (see pyproject.toml)."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from helpers import classifiers, data, demo, diffusion, fid, files, results, settings, unet
from tests.pages import NOTEBOOKS, ROOT, code, definitions, run, settings_cell, training_loop

FULL_SIZE = {
    "01_classifier": {
        "STEPS": 10_000,
        "STEP_LIMIT": 10_000,
        "PARAMETER_LIMIT": 100_000,
        "DATA": "official",
        "TRAIN": "auto",
    },
    "02_diffusion": {
        "STEPS": 50_000,
        "STEP_LIMIT": 50_000,
        "PARAMETER_LIMIT": 948_856,
        "SAMPLES": 10_000,
        "DATA": "official",
        "TRAIN": "auto",
    },
    "03_interpolation": {"ROWS": 10},
}


def _assignments(source):
    """Name -> list of the values assigned to it at the top level, as syntax trees."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                found.setdefault(getattr(target, "id", None), []).append(node.value)
    return found


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == list(FULL_SIZE)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_settings_are_literals_of_full_size_with_a_comment_each(path):
    cell = settings_cell(path)
    values = {}
    for node in ast.parse(cell["source"]).body:
        assert isinstance(node, ast.Assign), "the settings cell holds literals only"
        assert node.targets[0].id.isupper()
        values[node.targets[0].id] = ast.literal_eval(node.value)
    assert len(values) == len(cell["source"].splitlines())
    assert values | FULL_SIZE[path.stem] == values


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_there_is_a_rule_for_every_setting_and_the_defaults_keep_it(path):
    values = {name: ast.literal_eval(value) for name, (value,) in _assignments(settings_cell(path)["source"]).items()}
    assert not values.keys() - settings.RULES.keys()
    settings.check(values)
    for network in unet.NETWORKS:
        settings.check({"NETWORK": network})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_mock_replaces_a_literal_of_its_own_cell(path):
    mocked = [cell for cell in code(path) if "nbmake" in cell["metadata"]]
    assert mocked == [settings_cell(path)]
    here = _assignments(mocked[0]["source"])
    mocks = mocked[0]["metadata"]["nbmake"]["mock"]
    assert mocks
    for name, value in mocks.items():
        assert len(here[name]) == 1
        assert type(ast.literal_eval(here[name][0])) is type(value)
    assert mocks.get("STEPS", 0) < 100


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_format(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    widgets = notebook["metadata"].get("widgets", {})
    assert all("state" in widget for widget in widgets.values())
    lengths = sorted(len(cell["source"].splitlines()) for cell in code(path))
    assert lengths[-1] <= 40
    assert lengths[len(lengths) // 2] <= 12
    for cell in code(path):
        assert max(map(len, cell["source"].splitlines())) <= 96, "a page cuts off what is longer"
        assert "fmt: skip" not in cell["source"]
        assert not re.search(r"^\s*[!%]", cell["source"], re.MULTILINE), "shell lines and magics pass unnoticed"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_stored_outputs_are_whole_and_clean(path):
    cells = code(path)
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), "run top to bottom"
    assert all(output["output_type"] != "error" for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    text = json.dumps([o.get("text", "") or {k: v for k, v in o["data"].items() if k != "image/png"} for o in outputs])
    assert not re.search(r"/(root|home|tmp|work|Users|usr)/|[A-Z]:\\\\", text)
    assert "demo" not in text, "the stored outputs come from real data"


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_run_all_twice_in_one_kernel_with_the_studies_of_the_cards(path, tmp_path, monkeypatch):
    """On demo data without a GPU, as README's first command has it, the long studies are shown, not made."""
    for name in ("DATA", "DATA_ROOT", "TRAIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(ROOT)
    cells, least = code(path), {"SAMPLES": 4, "VIEWS": 1, "ROWS": 2, "STEPS": 4, "NEON_STEPS": 1, "SEEDS": [0]}
    run(path, [*cells, *cells], MEASURE="no", RUNS=str(tmp_path), **least)


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
def test_the_last_tenth_of_the_classifiers_steps_sees_images_unmoved(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA", "demo")
    cells = code(NOTEBOOKS[0])
    end = next(i for i, cell in enumerate(cells) if cell["source"].startswith("def train("))
    kernel, moved, shuffled = run(NOTEBOOKS[0], cells[: end + 1], RUNS=str(tmp_path)), [], []
    drawn_from, kinds = [], ("degrees", "scale", "shear", "shift", "bend", "stroke")
    monkeypatch.setitem(kernel, "jitter", lambda x, **how: moved.append(how) or x)
    draw = kernel["batches"].batch
    monkeypatch.setattr(kernel["batches"], "batch", lambda x, *how: drawn_from.append(x) or draw(x, *how))
    monkeypatch.setitem(kernel, "shuffle_channels", lambda x: shuffled.append(x) or x)
    kernel["train"](kernel["classifiers"].PaperClassifier, 0, steps=20)
    assert moved == [{name: kernel[name.upper()] for name in kinds}] * 18
    assert len(shuffled) == 20
    assert all(of is kernel["images"] for of in drawn_from)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_cell_that_comes_too_early_misses_a_name_and_leaves_nothing(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    imports = next(cell for cell in code(path) if "from helpers import" in cell["source"])
    too_early = 0
    for cell in code(path)[1:]:  # the first one finds the bundle, or says that it is not there
        kernel = {"__name__": "__main__"}
        exec(compile(imports["source"], path.name, "exec"), kernel)
        try:
            exec(compile(cell["source"], path.name, "exec"), kernel)
        except NameError:
            too_early += 1
    assert too_early > len(code(path)) / 2
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
def test_the_classifiers_loop_learns_and_logs_what_it_did(tmp_path):
    train, _ = training_loop(1, tmp_path, STEPS=60, BATCH=32, LR=0.01, UNAUGMENTED=0.0, AMP=False)
    _, history, certificate = train()
    assert history["loss"][-10:].mean() < 0.8 * history["loss"][:10].mean()
    assert history["accuracy"][-10:].mean() > history["accuracy"][:10].mean() + 0.1
    assert certificate["steps"] == 60


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
@pytest.mark.parametrize("number", [1, 2])
def test_the_loops_train_in_float16_as_on_a_card_without_bfloat16(number, tmp_path):
    train, kernel = training_loop(number, tmp_path, STEPS=2, BATCH=2, NEON_STEPS=0)
    kernel["amp"] = torch.float16
    _, history, certificate = train()
    assert history["loss"].isfinite().all()
    assert certificate["steps"] == 2  # none was skipped: the loss was scaled into float16's range
    state = files.load_tensors(next(tmp_path.rglob("*.ckpt")).read_bytes().partition(b"\n")[2], "checkpoint")
    assert state["parts"]["scaler"]["scale"] == 2.0**16


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
def test_variants_of_one_recipe_do_not_take_each_others_checkpoints(tmp_path):
    _, kernel = training_loop(1, tmp_path, STEPS=2, BATCH=4)
    made = [lambda width=width: kernel["classifiers"].DigitSumClassifier((8, 8, 8, 8, width)) for width in (8, 16)]
    nets = [kernel["train"](make, 0)[0] for make in made]
    assert [net.reader[-1].in_features for net in nets] == [72, 144]
    assert len([*tmp_path.rglob("DigitSumClassifier-*.ckpt")]) == 2


def test_misread_digits_and_the_digits_to_blame_are_counted(monkeypatch, capsys):
    """The two cells of notebook 1 that count them, on six digits that are known."""
    digits = torch.arange(6, dtype=torch.uint8)[:, None, None].expand(6, 28, 28)
    names = {"torch": torch, "plots": mock.Mock(), "display": lambda _: None, "source": "these", "digit_images": digits,
             "digit_labels": torch.arange(6), "read": torch.tensor([0, 9, 2, 9, 9, 5])}  # fmt: skip
    names["best_card"] = {"data": "these", "seeds": [{"misread_digits": [1, 3, 4]}, {"misread_digits": [0, 3, 4]}]}
    cells = [cell["source"] for cell in code(NOTEBOOKS[0])]
    (misread,) = [cell for cell in cells if cell.startswith("misread = ")]
    exec(misread, names)
    assert names["shown"] == [3, 4, 1]  # with every seed, then with this one alone
    grid = names["plots"].image_grid.call_args
    assert torch.equal(grid.args[0][:, 0, 0, 0], torch.tensor([3, 4, 1], dtype=torch.uint8))
    assert grid.kwargs["title"] == "3 of 6 digits misread, 2 with every seed"
    names["best_card"]["data"] = "others"
    exec(misread, names)
    assert names["plots"].image_grid.call_args.kwargs["title"] == "3 of 6 digits misread, 0 with every seed"

    rows = torch.tensor([[0, 2, 5], [1, 2, 0], [3, 1, 2], [3, 0, 0]])  # which digits the test images show
    answers = F.one_hot(torch.tensor([0, 9, 9, 9]), 20).float().log()
    names["splits"] = {"test": (digits[rows], torch.tensor([0, 1, 2, 3]))}
    names["loaded"] = {"paper net": None, "digit-sum net": None}
    names["classifiers"] = mock.Mock(predict=lambda net, images: answers)
    (blamed,) = [cell for cell in cells if cell.startswith("test_images, test_labels = ")]
    exec(blamed, names)
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "3 wrong, 2 by one misread digit; 2 digits to blame"
    assert "digit-sum net: 3 wrong, 0% of them by one; mean confidence" in said[1]
    assert said[1].endswith("right 25.0%")


def test_the_colab_cell_is_the_same_everywhere():
    assert len({next(c["source"] for c in code(path) if "google.colab" in c["source"]) for path in NOTEBOOKS}) == 1


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_the_colab_cell_fetches_the_repository_into_an_empty_folder(tmp_path):
    origin, stand_in, session = tmp_path / "origin", tmp_path / "stand-in", tmp_path / "content"
    (stand_in / "google" / "colab").mkdir(parents=True)
    (stand_in / "google" / "colab" / "__init__.py").touch()
    (stand_in / "pip").mkdir()
    (stand_in / "pip" / "__init__.py").touch()
    (stand_in / "pip" / "__main__.py").write_text("import sys\nopen('installed', 'w').write(' '.join(sys.argv[1:]))")
    session.mkdir()
    shutil.copytree(ROOT / "helpers", origin / "helpers", ignore=shutil.ignore_patterns("__pycache__"))
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for command in (["init", "--quiet"], ["add", "."], [*who, "commit", "--quiet", "--message", "all"]):
        subprocess.run(["git", *command], cwd=origin, check=True)
    cell = next(c["source"] for c in code(NOTEBOOKS[0]) if "google.colab" in c["source"])
    program = f"import google.colab\n{cell}\nimport helpers\nprint(helpers.__file__)"

    def start(folder, repository):
        environment = {**os.environ, "REPOSITORY": repository, "PYTHONPATH": str(stand_in)}
        command = [sys.executable, "-c", program]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    for folder in (session, session / "bundle", session):  # at first, run again, and in a restarted kernel
        done = start(folder, origin.as_uri())
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.strip()) == session / "bundle" / "helpers" / "__init__.py"
    assert (session / "installed").read_text() == "install -q clean-fid"
    other = tmp_path / "other"
    other.mkdir()
    for wrong in ("https://github.com/OWNER/REPOSITORY", (tmp_path / "none").as_uri()):
        done = start(other, wrong)
        assert "In Colab: write your copy's address into this cell, or upload" in done.stderr.splitlines()[-1]
    shutil.make_archive(str(other / "bundle"), "zip", tmp_path, "stand-in")  # of something else
    done = start(other, wrong)
    assert "delete the folder bundle; rerun" in done.stderr.splitlines()[-1]
    shutil.rmtree(other / "bundle")
    (other / "bundle.zip").write_bytes((other / "bundle.zip").read_bytes()[:-40])  # half of one
    for _ in range(2):  # is not taken for the whole when the cell is run again
        assert start(other, wrong).returncode == 1
        assert not (other / "bundle").exists()
    (tmp_path / "pack" / "__MACOSX" / "origin" / "helpers").mkdir(parents=True)  # as a Mac packs
    (tmp_path / "pack" / "__MACOSX" / "origin" / "helpers" / "._data.py").touch()
    shutil.move(origin, tmp_path / "pack" / "origin")  # with a folder around it, as GitHub packs
    shutil.make_archive(str(other / "bundle"), "zip", tmp_path / "pack")
    done = start(other, wrong)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == other / "bundle" / "origin" / "helpers" / "__init__.py"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_started_elsewhere_a_notebook_says_where_it_wants_to_be(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="start in the bundle's folder"):
        exec(compile(code(path)[0]["source"], path.name, "exec"), {})


REFUSED = {
    "01_classifier": [
        {"DATA": "Demo"}, {"STEP_LIMIT": "10000"}, {"TRAIN": "YES"}, {"SEEDS": []}, {"SEEDS": 0}, {"STEPS": 0},
        {"MEASURE": "all"}, {"RUNS": ""}, {"STEPS": 10_001}, {"STEPS": 5e3}, {"BATCH": 0},
        {"LR": -0.1}, {"LR": float("nan")}, {"EMA_DECAY": 1.0}, {"UNAUGMENTED": 1.5}, {"VIEWS": 0},
        {"SAVE_EVERY": 0}, {"BATCH": "64"}, {"STEPS": True},
    ],
    "02_diffusion": [
        {"DATA": "cifar"}, {"MEASURE": "Yes"}, {"NETWORK": "deep"}, {"PREDICTION": "v"}, {"OPTIMIZER": "sgd"},
        {"STEPS": 50_001}, {"STEPS": [5]}, {"STEPS": "6"}, {"NEON_STEPS": 6}, {"NEON_SAMPLES": 3}, {"HELD_OUT": -1},
        {"HELD_OUT": 3, "MEASURE": "yes"}, {"BATCH": 45_001, "NEON_SAMPLES": 50_000}, {"SAMPLES": 3},
        {"SAMPLER_STEPS": 1}, {"WIDTHS": 48}, {"WIDTHS": (48, 96)}, {"SWEEP_STEPS": [10, 1]}, {"SWEEP_STEPS": 10},
        {"SWEEP_GUIDANCE": []}, {"GUIDANCE_INTERVAL": (-1, 6)}, {"GUIDANCE_INTERVAL": 3},
        {"LABEL_DROPOUT": 2}, {"SAVE_EVERY": 0}, {"AMP": "no"}, {"SEED": -1},
    ],
    "03_interpolation": [
        {"DATA": "shapes"}, {"MEASURE": "Yes"}, {"ROWS": 1}, {"PAIRS": 1}, {"MIDDLES": 1},
        {"SAMPLER_STEPS": 1}, {"INVERSION_STEPS": 0}, {"ANCESTRAL_STEPS": 0}, {"ANCESTRAL_STEPS": 1_001},
    ],
}  # fmt: skip


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_setting_that_cannot_be_obeyed_is_refused_by_name_before_anything_else(path, monkeypatch):
    for name in ("DATA", "DATA_ROOT", "TRAIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(ROOT)
    settings, cells = settings_cell(path), code(path)
    for change in REFUSED[path.stem]:
        with pytest.raises(ValueError, match=rf"^{next(iter(change))}(\[\d\])* must"):
            run(path, cells[: cells.index(settings) + 2], **change)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_cell_after_the_settings_may_run_twice_and_an_empty_variable_counts_as_none(path, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("DATA", "")
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    settings, cells = settings_cell(path), code(path)
    at = cells.index(settings)
    kernel = run(path, [*cells[: at + 2], cells[at + 1]])
    assert kernel["DATA"] == "demo"
    assert kernel["DATA_ROOT"] == str(tmp_path)
    assert kernel["runs"] == "runs/test/demo"
    monkeypatch.setenv("DATA", "/scratch/datasets")  # a cluster's own variable
    with pytest.raises(ValueError, match="DATA must be one of .*, got '/scratch/datasets'"):
        run(path, cells[: at + 2])


REAL_SHAPES = torch.zeros(50_000, 3, 1, 1, dtype=torch.uint8), torch.arange(50_000) % 100

PAPER_RECIPE = {"NETWORK": "plain", "BATCH": 384, "NEON_STEPS": 0, "PREDICTION": "epsilon", "OPTIMIZER": "adam",
             "LR": 0.001, "LR_DECAY": 0.0, "EMA_DECAY": 0.0, "LABEL_DROPOUT": 0.0, "GUIDANCE": 1.0}  # fmt: skip
NOTHING_HELD_OUT = {"HELD_OUT": 0, "NEON_STEPS": 0, "GUIDANCE_INTERVAL": (0.0, 6.0), "LABEL_DROPOUT": 0}


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
@pytest.mark.parametrize("changes", [PAPER_RECIPE, NOTHING_HELD_OUT], ids=["paper recipe", "nothing held out"])
def test_a_diffusion_run_of_another_kind(changes, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("DATA", "demo")
    changes = {"MEASURE": "auto", "STEPS": 2, "SAMPLES": 4, "RUNS": str(tmp_path), **changes}
    kernel = run(NOTEBOOKS[1], code(NOTEBOOKS[1]), **changes)
    assert len(kernel["images"]) == 5_000 - min(changes.get("HELD_OUT", 500), 500)
    assert kernel["card"]["steps"] == 2
    assert kernel["card"]["settings"]["prediction"] == changes.get("PREDICTION", "edm")
    assert kernel["GUIDANCE"] == 1  # in both no label is hidden, so there is nothing to guide with
    assert not kernel["measuring"]


def test_the_settings_that_the_page_gives_for_its_two_plain_runs_are_those_of_their_cards():
    r = results.load_card("diffusion_paper")["settings"]
    common = {"NETWORK": r["network"], "WIDTHS": tuple(r["widths"]), "BATCH": r["batch"]}
    own = {"PREDICTION": r["prediction"], "OPTIMIZER": r["optimizer"], "LR": r["lr"]}
    assert (r["lr_decay"], r["ema_decay"], r["label_dropout"]) == (0, 0, 0)
    assert "neon" not in r
    cells = json.loads(NOTEBOOKS[1].read_text(encoding="utf-8"))["cells"]
    text = " ".join("".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown").split())
    for name, value in (common | own).items():
        assert f"`{name} = {json.dumps(value) if isinstance(value, str) else value}`" in text
    plain = results.load_card("diffusion_plain")["settings"]
    defaults = {
        name.lower(): ast.literal_eval(v[0]) for name, v in _assignments(settings_cell(NOTEBOOKS[1])["source"]).items()
    }
    assert {key: value for key, value in plain.items() if value != defaults[key]} == {
        "network": r["network"],
        "widths": r["widths"],
        "batch": r["batch"],
    }


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
def test_the_diffusion_loop_mirrors_and_neons_samples_are_unguided_of_all_classes_and_of_other_noise(tmp_path):
    train, kernel = training_loop(2, tmp_path, STEPS=3, BATCH=4, NEON_STEPS=0, AMP=False)
    mirrored, drawn = [], {}
    kernel["mirror"] = lambda x: mirrored.append(len(x)) or x
    train()
    assert mirrored == [4] * 3
    (cell,) = [cell["source"] for cell in code(NOTEBOOKS[1]) if "def own_samples(" in cell["source"]]
    exec(cell, kernel)
    kernel |= {"NEON_SAMPLES": 230, "draw": lambda net, labels, **how: drawn.update(how) or torch.zeros(len(labels))}
    _, labels = kernel["own_samples"](None)
    assert labels.bincount().tolist() == [3] * 30 + [2] * 70
    assert "guidance" not in drawn
    assert drawn["seed"] not in (kernel["SEED"], *kernel["SAMPLE_SEEDS"])
    assert len(drawn["sigmas"]) == kernel["SAMPLER_STEPS"] + 1


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
def test_notebook_1_trains_on_two_sets_and_judges_a_study_by_the_unseen_one(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    kernel = definitions(NOTEBOOKS[0], "splits = {", "recipe = ", "def compared(", DATA="demo", RUNS=str(tmp_path))
    for split, found in kernel["splits"].items():
        assert data.fingerprint(*found) == data.fingerprint(*data.addnist("", split, "demo"))
    for trained_on, of in zip((kernel["images"], kernel["labels"]), (0, 1), strict=True):
        assert torch.equal(trained_on, torch.cat([data.addnist("", split, "demo")[of] for split in ("train", "valid")]))
    kernel |= {"MEASURE": "yes", "SEEDS": [0, 1], "train": lambda make, seed, **_: (seed, None, {"parameters": 7})}
    kernel["hits"] = lambda net, split: torch.tensor({"unseen": 0.5}[split] + net / 8)
    table = kernel["compared"]("study", {"one of them": (None, {})}, 2)
    assert "|  | parameters | accuracy, unseen digits |" in table.data
    assert "| one of them | 7 | 56.25% ± 8.84% |" in table.data


def test_what_a_finished_net_is_measured_by(monkeypatch):
    """Each figure from its own set and number of views."""
    monkeypatch.chdir(ROOT)
    kernel = definitions(NOTEBOOKS[0], "splits = {", "recipe = ", "def hits(", DATA="demo")
    torch.manual_seed(0)
    net, asked, seen = kernel["classifiers"].DigitSumClassifier().eval(), [], {}
    with monkeypatch.context() as patch:
        right = F.one_hot(kernel["splits"]["test"][1], 20).float()
        patch.setattr(classifiers, "predict", lambda net, x, **how: seen.update(how) or right)
        assert kernel["hits"](net, "test", 3).tolist() == [1.0] * len(right)
    assert seen["views"] == 3
    assert seen["jitter"] == {name: most * kernel["VIEW_JITTER"] for name, most in kernel["recipe"]["jitter"].items()}
    kernel["hits"] = lambda of, split, views=1: asked.append((of, split, views)) or torch.arange(130.0) + len(asked)
    history = {"loss": torch.arange(1500.0), "accuracy": torch.arange(1500.0), "seconds": torch.full((1500,), 2.0)}
    row = kernel["measure"](net, history, 7)
    assert asked == [(net, "test", 1), (net, "unseen", 1), (net, "test", kernel["VIEWS"])]
    assert (row["seed"], row["seconds"], row["train_loss"], row["train_accuracy"]) == (7, 3000, 999.5, 999.5)
    means = [float(part.mean()) for part in (torch.arange(130.0) + 1).split(64)]
    assert float(row["test_accuracy_std_over_batches"]) == pytest.approx(np.std(means, ddof=1))
    read = classifiers.predict(net.reader, kernel["digit_images"][:, None]).argmax(dim=1)
    assert row["misread_digits"].tolist() == np.flatnonzero(read != kernel["digit_labels"]).tolist()
    assert [float(row[f"{of}_accuracy"]) for of in ("test", "unseen")] == [65.5, 66.5]
    assert float(row["test_accuracy_tta"]) == 67.5


@pytest.mark.parametrize("count", [50, 150, 2_048])
def test_samples_are_spread_over_the_classes(count, monkeypatch):
    """Those of the FID, each seed's, and those of the sweep."""
    monkeypatch.chdir(ROOT)
    kernel, drawn = definitions(NOTEBOOKS[1], "def measure_fid(", "def measure_sweep("), []
    kernel |= {"SAMPLES": count, "SWEEP_SAMPLES": count, "SAMPLE_SEEDS": [1, 2], "features": lambda images: images}
    kernel |= {"sampling": {"sigmas": diffusion.karras_sigmas(4), "guidance": 1.5, "interval": (0.0, 80.0)}}
    kernel |= {"denoiser": "with Neon", "own_weight": 1.0, "test_images": torch.zeros(9), "base": None, "worse": None}
    kernel |= {"held_out": torch.zeros(9), "trained": True, "NEON_STEPS": 3}
    kernel |= {"SWEEP_STEPS": [6], "SWEEP_GUIDANCE": [1.0, kernel["GUIDANCE"]], "SWEEP_INTERVALS": [(0.3, 6.0)]}

    def draw(net, labels, *, seed, **how):
        drawn.append((net, labels, seed, how))
        return torch.full((len(labels),), float(len(drawn)))  # known again by its place

    kernel["draw"] = draw
    monkeypatch.setattr(kernel["fid"], "judge", lambda found, real: dict.fromkeys(("fid", "kid"), float(found[0])))
    monkeypatch.setattr(kernel["training"], "step_away", lambda *nets: "without Neon")
    assert kernel["measure_fid"]({})["fid_by_seed"] == [1.0, 2.0]
    assert [(seed, how) for _, _, seed, how in drawn] == [(1, kernel["sampling"]), (2, kernel["sampling"])]
    swept = kernel["measure_sweep"]()
    steps, default = kernel["SAMPLER_STEPS"], [kernel["GUIDANCE"], list(kernel["GUIDANCE_INTERVAL"]), 1.0]
    assert [[row[key] for key in ("steps", "guidance", "interval", "neon")] for row in swept["rows"]] == [
        [steps, *default], [6, *default], [steps, 1.0, *default[1:]], [steps, default[0], [0.3, 6.0], 1.0],
        [steps, *default[:2], 0.0],
    ]  # fmt: skip
    assert [row["fid"] for row in swept["rows"]] == [3.0, 4.0, 5.0, 6.0, 7.0]
    assert [net for net, *_ in drawn] == ["with Neon"] * 6 + ["without Neon"]
    assert [len(how["sigmas"]) - 1 for *_, how in drawn[2:]] == [steps, 6, steps, steps, steps]
    assert {seed for _, _, seed, _ in drawn[2:]} == {1}
    for _, labels, _, _ in drawn:
        counts = labels.bincount(minlength=100)
        assert len(labels) == count
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(
    ("choices", "needed"),
    [({"TRAIN": "yes", "MEASURE": "auto"}, True), ({"TRAIN": "no", "MEASURE": "yes"}, True),
     ({"TRAIN": "yes", "MEASURE": "no"}, False), ({"TRAIN": "no", "MEASURE": "auto"}, False)],
)  # fmt: skip
def test_the_fid_network_is_asked_for_before_the_training_in_the_settings_data_root(choices, needed, monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in ("DATA", "DATA_ROOT", "TRAIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(data, "cifar100", lambda root, split, source: REAL_SHAPES)
    monkeypatch.setattr(data, "cifar100_classes", lambda root, source: demo.CLASSES)
    asked = []
    monkeypatch.setattr(fid, "load_network", lambda root, device: asked.append(root) or (lambda x: x.mean(dim=(2, 3))))
    kernel = definitions(NOTEBOOKS[1], "images, labels = (part", DATA_ROOT="~/my data", DATA="official", **choices)
    assert asked == [str(Path("~/my data").expanduser())] * needed
    if needed:
        assert kernel["features"](torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 3)


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
def test_interpolation_with_the_weights_of_a_demorun(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("DATA", "demo")
    module = diffusion.Denoiser(unet.UNet())
    card = results.load_weights("diffusion", module)
    unguided = {"classes": demo.CLASSES, "settings": card["settings"] | {"label_dropout": 0.0}}
    results.save_weights("diffusion", module, card | unguided, tmp_path / "demo")
    cells = code(NOTEBOOKS[2])
    end = next(i for i, cell in enumerate(cells) if cell["source"].startswith("sampling = "))
    kernel = run(NOTEBOOKS[2], cells[: end + 1], RUNS=str(tmp_path))
    assert len(kernel["names"]) == 8
    assert kernel["GUIDANCE"] == 1
    assert {name for pair in kernel["names"] for name in pair} <= set(demo.CLASSES)


def test_midpoints_and_starting_points_are_drawn_as_they_are_called(monkeypatch):
    """Notebook 3's table of midpoints: where, by which way, and with which labels each row was drawn."""
    monkeypatch.chdir(ROOT)
    kernel, drawn = definitions(NOTEBOOKS[2], "def measure_middles("), {}
    kernel |= {"sampling": {}, "lerp": "lerp"}
    monkeypatch.setattr(kernel["fid"], "frechet_distance", lambda found, real: float(found))
    monkeypatch.setattr(kernel["fid"], "mean_distance", lambda found, real: 0.0)

    def between(denoiser, labels, noises, positions, *, way="slerp", class_way=None, **sampling):
        drawn[float(len(drawn))] = positions, way, class_way or way, torch.equal(*labels)
        return [len(drawn) - 1.0]

    monkeypatch.setattr(kernel["interpolation"], "between", between)
    rows = kernel["measure_middles"](lambda images: images)["rows"]
    assert {name: drawn[row["fid"]] for name, row in rows.items()} == {
        "starting points": ([0.0], "slerp", "slerp", True), "slerp of noise": ([0.5], "slerp", "slerp", True),
        "lerp of noise": ([0.5], "lerp", "lerp", True), "slerp of noise and class": ([0.5], "slerp", "slerp", False),
        "lerp of noise and class": ([0.5], "lerp", "lerp", False),
        "slerp of noise, lerp of class": ([0.5], "slerp", "lerp", False),
    }  # fmt: skip


@pytest.mark.parametrize(("number", "name", "most"), [(0, "STEPS", 160), (1, "NEON_STEPS", 20), (2, "ROWS", 6)])
def test_the_demo_is_short_whatever_the_settings_say(number, name, most, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("DATA", "demo")
    cells = code(NOTEBOOKS[number])
    at = cells.index(settings_cell(NOTEBOOKS[number]))
    assert run(NOTEBOOKS[number], cells[: at + 2], mocked=False)[name] == most


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_listings_show_the_code_that_runs(path):
    for cell in code(path):
        for name in re.findall(r"plots\.listing\((.*)\)", cell["source"]):
            imports = next(c["source"] for c in code(path) if "from helpers import" in c["source"])
            kernel = {}
            exec(imports, kernel)
            (output,) = cell["outputs"]
            shown = eval(f"plots.listing({name})", kernel).data
            assert "".join(output["data"]["text/plain"]).rstrip() == shown.rstrip()
            assert max(map(len, shown.splitlines())) <= 96, "a page cuts off what is longer"


def test_the_notebooks_become_python_scripts(tmp_path):
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "script", "--output-dir", tmp_path, *NOTEBOOKS]
    subprocess.run(command, check=True, capture_output=True)
    for path in NOTEBOOKS:
        compile((tmp_path / f"{path.stem}.py").read_text(encoding="utf-8"), path.stem, "exec")


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
def test_another_base_gets_another_neon_and_who_does_not_train_sees_the_net_that_is_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("DATA", "demo")
    cells = code(NOTEBOOKS[1])
    end = next(i for i, cell in enumerate(cells) if cell["source"].startswith("if trained:"))
    changes = {"RUNS": str(tmp_path), "MEASURE": "no", "STEPS": 3, "NEON_STEPS": 1, "HELD_OUT": 60}
    run(NOTEBOOKS[1], cells[: end + 1], **changes)
    for path in tmp_path.rglob("*.ckpt"):
        if files.load_tensors(path.read_bytes().partition(b"\n")[2], path.name)["step"] == 2:
            path.unlink()  # the base, as its message advises; then it comes out another
    monkeypatch.setattr(diffusion, "SIGMA_DATA", 0.4)
    kernel = run(NOTEBOOKS[1], cells[: end + 1], **changes)
    assert len(list(tmp_path.rglob("*.ckpt"))) == 3
    pairs = zip(kernel["base"].parameters(), kernel["worse"].parameters(), strict=True)
    assert sum(float((a - b).square().sum()) for a, b in pairs) < 0.01
    losses = torch.cat([kernel["history"]["loss"]])
    assert len(losses) == 3
    assert losses[-1] == kernel["last"]["loss"][-1]  # the base's, then Neon's
    assert {"answer", "classes", "seconds"} <= kernel["card"].keys()
    kernel = run(NOTEBOOKS[1], cells[: end + 1], **changes | {"TRAIN": "no", "HELD_OUT": 500, "NETWORK": "plain"})
    assert kernel["HELD_OUT"] == 60
    assert type(kernel["net"]) is type(kernel["denoiser"].net)


@pytest.mark.parametrize("other", ["steps", "batch", "seeds", "data"])
def test_two_cards_of_different_experiments_are_not_shown_as_one(other, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("DATA", "demo")
    monkeypatch.setenv("TRAIN", "no")
    for name in ("classifier_paper", "classifier_best"):
        card = results.load_card(name)
        if name == "classifier_paper":
            changed = {"steps": 3, "data": "AddNIST", "seeds": card["seeds"][:1], "batch": None}
            card |= {other: changed[other]} if other != "batch" else {"settings": card["settings"] | {"batch": 3}}
        (tmp_path / "demo").mkdir(exist_ok=True)
        shutil.copy(results.WEIGHTS / f"{name}.pt", tmp_path / "demo")
        results.save_card(name, card, tmp_path / "demo")
    definitions(NOTEBOOKS[0], "splits = {", "recipe = ", "def train(", "# title -> name", RUNS=str(tmp_path))
    assert "not one experiment" in capsys.readouterr().out
