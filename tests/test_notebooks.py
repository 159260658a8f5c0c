"""What must hold for the notebooks as files; pytest runs them too, through nbmake (see pyproject.toml)."""

import ast
import base64
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from html import escape
from pathlib import Path

import pytest
import torch

from helpers import (
    batches,
    classifiers,
    data,
    demo,
    diffusion,
    fid,
    files,
    plane,
    reports,
    results,
    settings,
    studies,
    unet,
    walks,
)
from tests.pages import NOTEBOOKS, ROOT, beginning, code, definitions, run, settings_cell, training_loop

FULL_SIZE = {
    "01_classifier": {
        "STEPS": 10_000,
        "DATA": "official",
        "TRAIN": "auto",
    },
    "02_diffusion": {
        "STEPS": 50_000,
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


@pytest.mark.parametrize(("number", "parameters", "steps"), [(0, 100_000, 10_000), (1, 948_856, 50_000)])
def test_the_limits_are_the_courseworks_or_less_and_nobodys_to_set(number, parameters, steps, monkeypatch):
    monkeypatch.chdir(ROOT)
    kernel = definitions(NOTEBOOKS[number])
    assert (kernel["PARAMETER_LIMIT"], kernel["STEP_LIMIT"]) == (parameters, steps)


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
    assert lengths[-1] <= 30
    assert lengths[len(lengths) // 2] <= 8
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
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    for output in pictures:
        assert output["metadata"]["image/png"]["alt"].endswith((".", "and back")), "no alternative text"
        assert png_width(output["data"]["image/png"]) <= 1250, "unreadable at 900 pixels"


def png_width(data):
    return int.from_bytes(base64.b64decode(data)[16:20], "big")


@pytest.fixture
def quick(monkeypatch):
    """What takes seconds, made short: first pictures by three steps, two hundred test images, no Neon on the spiral."""
    addnist = data.addnist

    def few(root, split, source):
        return tuple(part[: 200 if split == "test" else None] for part in addnist(root, split, source))

    monkeypatch.setattr(data, "addnist", few)
    monkeypatch.setattr(studies, "standard", lambda card: {"sigmas": diffusion.karras_sigmas(3)})
    monkeypatch.setattr(plane, "neon", lambda points, seed: {w: points * w for w in (-1, 0, 1)})


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_run_all_twice_in_one_kernel_with_the_studies_of_the_cards(path, tmp_path, monkeypatch, quick):
    """On demo data without a GPU, as README's first command has it, the long studies are shown, not made."""
    for name in ("DATA", "DATA_ROOT", "TRAIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(ROOT)
    cells, least = code(path), {"SAMPLES": 4, "VIEWS": 1, "ROWS": 2, "STEPS": 4, "NEON_STEPS": 1, "SEEDS": [0]}
    run(path, [*cells, *cells], MEASURE="no", RUNS=str(tmp_path), **least)


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
def test_the_last_tenth_of_the_classifiers_steps_sees_images_unmoved(tmp_path, monkeypatch):
    _, kernel = training_loop(1, tmp_path, STEPS=20, BATCH=16)
    moved, shuffled, drawn_from = [], [], []
    kinds = ("degrees", "scale", "shear", "shift", "bend", "stroke")
    kernel["jitter"] = lambda x, **how: moved.append(how) or x
    kernel["shuffle_channels"] = lambda x: shuffled.append(x) or x
    draw = kernel["batches"].batch
    monkeypatch.setattr(kernel["batches"], "batch", lambda x, *how: drawn_from.append(x) or draw(x, *how))
    kernel["train"](kernel["classifiers"].PaperClassifier, 0, data="demo")
    assert moved == [{name: kernel[name.upper()] for name in kinds}] * 18
    assert len(shuffled) == 20
    both = torch.cat([data.addnist("", split, "demo")[0] for split in ("train", "valid")])
    assert all(torch.equal(of, both) for of in drawn_from)


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
def test_who_is_told_the_digits_sees_no_channel_leave_its_place(tmp_path):
    _, kernel = training_loop(1, tmp_path, STEPS=3, BATCH=16, UNAUGMENTED=1.0)
    kernel["shuffle_channels"] = lambda x: pytest.fail("shuffled")
    r = kernel["recipe"] | {"data": "demo", "seed": 0, "told": True}
    x, y = kernel["seen_at"](1, r)
    images, names = ((x * batches.STD + batches.MEAN) * 255).round().byte(), data.digits("", "train", "demo")
    assert torch.equal(data.digit_names(images, names), y)
    net, history, _ = kernel["train"](kernel["classifiers"].ToldDigits, 0, data="demo", told=True)
    assert history["loss"].isfinite().all()
    assert net(x).shape == (16, 20)  # and answers with labels


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_cell_that_comes_too_early_misses_a_name_and_leaves_nothing(path, tmp_path, monkeypatch, quick):
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
    train, kernel = training_loop(number, tmp_path, STEPS=2, BATCH=2, NEON_STEPS=0, LR=1e-4)
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
    nets = [kernel["train"](make, 0, data="demo")[0] for make in made]
    assert [net.reader[-1].in_features for net in nets] == [72, 144]
    assert len([*tmp_path.rglob("DigitSumClassifier-*.ckpt")]) == 2


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
        {"DATA": "Demo"}, {"TRAIN": "YES"}, {"SEEDS": []}, {"SEEDS": 0}, {"STEPS": 0},
        {"MEASURE": "all"}, {"RUNS": ""}, {"STEPS": 10_001}, {"STEPS": 5e3}, {"BATCH": 0},
        {"LR": -0.1}, {"LR": float("nan")}, {"EMA_DECAY": 1.0}, {"UNAUGMENTED": 1.5}, {"VIEWS": 0},
        {"BATCH": "64"}, {"STEPS": True},
    ],
    "02_diffusion": [
        {"DATA": "cifar"}, {"MEASURE": "Yes"}, {"NETWORK": "deep"}, {"PREDICTION": "v"}, {"OPTIMIZER": "sgd"},
        {"STEPS": 50_001}, {"STEPS": [5]}, {"STEPS": "6"}, {"NEON_STEPS": 6}, {"NEON_SAMPLES": 3}, {"HELD_OUT": -1},
        {"HELD_OUT": 3, "MEASURE": "yes", "DATA": "official"}, {"BATCH": 45_001, "NEON_SAMPLES": 50_000},
        {"SAMPLES": 3}, {"SAMPLER_STEPS": 1}, {"WIDTHS": 48}, {"WIDTHS": (48, 96)},
        {"GUIDANCE_INTERVAL": (-1, 6)}, {"GUIDANCE_INTERVAL": 3},
        {"LABEL_DROPOUT": 2}, {"AMP": "no"}, {"SEED": -1},
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
    for change in REFUSED[path.stem]:
        with pytest.raises(ValueError, match=rf"^{next(iter(change))}(\[\d\])* must"):
            run(path, beginning(path), **change)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_cell_after_the_settings_may_run_twice_and_an_empty_variable_counts_as_none(path, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("DATA", "")
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    cells = beginning(path)
    kernel = run(path, [*cells, cells[-1]])
    assert kernel["DATA"] == "demo"
    assert kernel["DATA_ROOT"] == str(tmp_path)
    assert not kernel.get("measuring")
    monkeypatch.setenv("DATA", "/scratch/datasets")  # a cluster's own variable
    with pytest.raises(ValueError, match="DATA must be one of .*, got '/scratch/datasets'"):
        run(path, cells)


REAL_SHAPES = torch.zeros(50_000, 3, 1, 1, dtype=torch.uint8), torch.arange(50_000) % 100

PAPER_RECIPE = {"NETWORK": "plain", "BATCH": 384, "NEON_STEPS": 0, "PREDICTION": "epsilon", "OPTIMIZER": "adam",
             "LR": 0.001, "LR_DECAY": 0.0, "EMA_DECAY": 0.0, "LABEL_DROPOUT": 0.0, "GUIDANCE": 1.0}  # fmt: skip
NOTHING_HELD_OUT = {"HELD_OUT": 0, "NEON_STEPS": 0, "GUIDANCE_INTERVAL": (0.0, 6.0), "LABEL_DROPOUT": 0}


@pytest.fixture
def cifar(monkeypatch, quick):
    """Drawn shapes in place of CIFAR-100, and every 40th pixel in place of the FID network's features."""
    monkeypatch.chdir(ROOT)
    for name in ("DATA", "DATA_ROOT", "TRAIN"):
        monkeypatch.delenv(name, raising=False)
    shapes = {split: demo.shapes(1 + (split == "train"), seed=int(split == "test")) for split in ("train", "test")}
    monkeypatch.setattr(data, "cifar100", lambda root, split, source="official": shapes[split])
    monkeypatch.setattr(fid, "load_network", lambda root, device: lambda x: x[:, :, ::40, ::40].flatten(1))
    return shapes


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
@pytest.mark.parametrize("changes", [PAPER_RECIPE, NOTHING_HELD_OUT], ids=["paper recipe", "nothing held out"])
def test_a_diffusion_run_of_another_kind(changes, tmp_path, cifar):
    """Trained, kept, loaded and judged; the page is about it, though its labels were never hidden."""
    changes = {"DATA": "official", "TRAIN": "yes", "STEPS": 2, "SAMPLES": 10, "WIDTHS": (8, 8, 8), "HELD_OUT": 40,
               "SAMPLE_SEEDS": [1], "RUNS": str(tmp_path), **changes, "BATCH": 16}  # fmt: skip
    kernel = run(NOTEBOOKS[1], code(NOTEBOOKS[1]), **changes)
    assert len(kernel["training_images"]()[0]) == 200 - changes["HELD_OUT"]
    assert kernel["card"]["steps"] == 2
    assert kernel["card"]["settings"]["prediction"] == changes.get("PREDICTION", "edm")
    assert kernel["card"]["metrics"]["n"] == 10
    assert kernel["card"]["device"]
    assert kernel["guidance"] == 1  # in both no label is hidden, so there is nothing to guide with
    assert not kernel["measuring"]


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
def test_everything_that_notebook_2_can_measure(tmp_path, cifar, monkeypatch):
    """Neon and all: what is drawn for the FID and for the sweep, by which network, and what the cards keep."""
    changes = {"DATA": "official", "TRAIN": "yes", "MEASURE": "yes", "STEPS": 3, "NEON_STEPS": 1, "NEON_SAMPLES": 16,
               "BATCH": 16, "SAMPLES": 50, "SAMPLER_STEPS": 3, "HELD_OUT": 60, "WIDTHS": (8, 8, 8),
               "RUNS": str(tmp_path)}  # fmt: skip
    cells, sweep = code(NOTEBOOKS[1]), studies.sweep
    monkeypatch.setattr(studies, "sweep", partial(sweep, samples=20))
    kernel = run(NOTEBOOKS[1], cells, **changes)
    card = results.load_card("diffusion", tmp_path)
    assert card["settings"]["neon"]["weight"] == kernel["NEON_WEIGHT"]
    assert len(card["metrics"]["fid_by_seed"]) == 2
    assert card["metrics"]["denoiser_evaluations"] == diffusion.evaluations(**kernel["sampling"])
    rows = results.load_card("diffusion_sweep", tmp_path)["rows"]
    assert rows[-1]["neon"] == 0
    assert rows[-1]["fid"] != rows[0]["fid"]
    assert len({row["fid"] for row in rows}) > 5
    again = run(
        NOTEBOOKS[1], cells, **changes | {"MEASURE": "auto"}
    )  # finished: nothing is trained or drawn anew but the study
    assert again["card"] == card


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
def test_everything_that_notebook_3_can_measure(tmp_path, cifar):
    changes = {"DATA": "official", "MEASURE": "yes", "RUNS": str(tmp_path), "ROWS": 2, "PAIRS": 2, "MIDDLES": 3}
    kernel = run(NOTEBOOKS[2], code(NOTEBOOKS[2]), **changes)
    card = results.load_card("interpolation", tmp_path)
    assert card["weights_sha256"] == kernel["card"]["sha256"]
    assert card["settings"] == json.loads(json.dumps(kernel["about"]))
    assert [*card["smoothness"]["rows"]][:9] == [*kernel["ways"]]
    assert card["middles"]["images_each"] == 3


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
def test_everything_that_notebook_1_can_measure(tmp_path, monkeypatch):
    """Trained on printed digits in place of MNIST's."""
    monkeypatch.chdir(ROOT)
    for name in ("DATA", "DATA_ROOT", "TRAIN"):
        monkeypatch.delenv(name, raising=False)
    digits, addnist = data.digits, data.addnist

    def printed(root, split, source="official"):
        return demo.digits(0) if split == "train" else digits(root, split)

    def few(root, split, source):
        of = addnist(root, {"unseen": "valid"}.get(split, split), source)
        return tuple(part[:200] for part in of) if split in ("unseen", "test") else of

    monkeypatch.setattr(data, "digits", printed)
    monkeypatch.setattr(data, "addnist", few)
    changes = {"DATA": "rebuilt", "TRAIN": "yes", "MEASURE": "yes", "STEPS": 2, "RUNS": str(tmp_path), "SEEDS": [0, 3],
               "ABLATION_STEPS": 2, "VIEWS": 2, "AMP": False}  # fmt: skip
    studies.to_train_on.cache_clear()
    kernel = run(NOTEBOOKS[0], code(NOTEBOOKS[0]), **changes)
    studies.to_train_on.cache_clear()
    for name in ("classifier_paper", "classifier_best"):
        card = results.load_card(name, tmp_path)
        assert [row["seed"] for row in card["seeds"]] == [0, 3]
        assert card["data"] == "AddNIST rebuilt from MNIST"
        assert (card["views"], card["steps"]) == (2, 2)
        assert "train: last 2 steps" in card["protocol"]
    assert kernel["folder"] == tmp_path
    asked = results.load_card("classifier_questions", tmp_path)
    assert [*asked["rows"]] == ["learned sum", "paper net, twice as deep", "digit-sum net, told every digit"]
    short = results.load_card("classifier_ingredients", tmp_path)
    assert len(short["rows"]["no EMA"]["unseen_accuracy"]) == 2
    assert short["settings"]["steps"] == 2


def test_the_plain_runs_are_the_pages_recipe_and_a_bare_ddpm_on_one_network():
    paper, plain = (results.load_card(f"diffusion_{name}")["settings"] for name in ("paper", "plain"))
    assert (paper["lr_decay"], paper["ema_decay"], paper["label_dropout"]) == (0, 0, 0)
    assert (paper["prediction"], paper["optimizer"]) == ("epsilon", "adam")
    assert "neon" not in paper
    assert [paper[key] for key in ("network", "widths", "batch")] == [
        plain[key] for key in ("network", "widths", "batch")
    ]
    found = _assignments(settings_cell(NOTEBOOKS[1])["source"])
    defaults = {name.lower(): ast.literal_eval(values[0]) for name, values in found.items()}
    differ = {key for key, value in plain.items() if value != defaults[key]}
    assert differ == {"network", "widths", "batch"}


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
def test_the_diffusion_loop_mirrors_and_neons_samples_are_unguided_of_all_classes_and_of_other_noise(tmp_path):
    train, kernel = training_loop(2, tmp_path, STEPS=3, BATCH=4, NEON_STEPS=0, AMP=False)
    mirrored, drawn = [], {}
    kernel["mirror"] = lambda x: mirrored.append(len(x)) or x
    train()
    assert mirrored == [4] * 3
    (cell,) = [cell["source"] for cell in code(NOTEBOOKS[1]) if "def own_samples(" in cell["source"]]
    exec(cell, kernel)
    kernel |= {"draw": lambda net, labels, **how: drawn.update(how) or torch.zeros(len(labels))}
    r = kernel["recipe"] | kernel["neon"] | {"samples": 230}
    _, labels = kernel["own_samples"](None, r)
    assert labels.bincount().tolist() == [3] * 30 + [2] * 70
    assert "guidance" not in drawn
    assert drawn["seed"] not in (kernel["SEED"], *kernel["SAMPLE_SEEDS"])
    assert len(drawn["sigmas"]) == kernel["SAMPLER_STEPS"] + 1


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


def test_pages_for_a_browser_fold_the_plumbing_and_describe_their_pictures(tmp_path):
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--config", ROOT / "html_pages.py", "--to", "html"]
    subprocess.run([*command, "--output-dir", tmp_path, NOTEBOOKS[0]], check=True, capture_output=True)
    html = (tmp_path / f"{NOTEBOOKS[0].stem}.html").read_text(encoding="utf-8")
    outputs = [output for cell in code(NOTEBOOKS[0]) for output in cell["outputs"]]
    described = [o["metadata"]["image/png"]["alt"] for o in outputs if "image/png" in o.get("data", {})]
    assert len(described) > 5
    assert all(escape(alt) in html.replace("&amp;", "&") for alt in map(str, described))
    assert "No description has been provided" not in html
    assert "google.colab" not in html
    assert "def train(" in re.sub(r"<[^>]*>", "", html)


def test_the_notebooks_become_python_scripts(tmp_path):
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "script", "--output-dir", tmp_path, *NOTEBOOKS]
    subprocess.run(command, check=True, capture_output=True)
    for path in NOTEBOOKS:
        compile((tmp_path / f"{path.stem}.py").read_text(encoding="utf-8"), path.stem, "exec")


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
def test_another_base_gets_another_neon_and_who_does_not_train_sees_what_is_loaded(tmp_path, cifar, monkeypatch):
    cells = code(NOTEBOOKS[1])
    end = next(i for i, cell in enumerate(cells) if "folder = results.newest(RUNS" in cell["source"])
    changes = {"DATA": "official", "TRAIN": "yes", "RUNS": str(tmp_path), "MEASURE": "no", "STEPS": 3, "NEON_STEPS": 1,
               "HELD_OUT": 60, "NEON_SAMPLES": 16, "BATCH": 16, "WIDTHS": (8, 8, 8)}  # fmt: skip
    run(NOTEBOOKS[1], cells[: end + 1], **changes)
    for path in tmp_path.rglob("*.ckpt"):
        if files.load_tensors(path.read_bytes().partition(b"\n")[2], path.name)["step"] == 2:
            path.unlink()  # the base, as its message advises; then it comes out another
    monkeypatch.setattr(diffusion, "SIGMA_DATA", 0.4)
    kernel = run(NOTEBOOKS[1], cells[: end + 1], **changes)
    assert len(list(tmp_path.rglob("*.ckpt"))) == 3
    pairs = zip(kernel["base"].parameters(), kernel["worse"].parameters(), strict=True)
    assert sum(float((a - b).square().sum()) for a, b in pairs) < 0.01
    assert len(kernel["log"]["loss"]) == 3
    assert kernel["log"]["loss"][-1] == kernel["last"]["loss"][-1]  # the base's, then Neon's
    assert {"answer", "classes", "seconds"} <= kernel["card"].keys()
    kernel = run(NOTEBOOKS[1], cells[: end + 1], **changes | {"TRAIN": "no", "NETWORK": "plain"})
    assert kernel["card"]["settings"]["held_out"] == 60
    assert kernel["denoiser"].net.widths == (8, 8, 8)


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_demo_trains_beside_the_rest_and_the_page_is_about_the_shipped_net(path, tmp_path, monkeypatch, quick):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("DATA", "demo")
    kernel = run(path, code(path), RUNS=str(tmp_path), STEPS=3, SAMPLER_STEPS=3)
    assert {file.parent.name for file in tmp_path.rglob("*.ckpt")} == ({"demo"} if path != NOTEBOOKS[2] else set())
    assert not list(tmp_path.glob("*"))[1:]
    assert kernel["card"]["sha256"] == results.load_card(kernel["card"]["name"])["sha256"]


def others(path):
    """Another value for each setting of a page that only numbers depend on, within its rule."""
    values = {name: ast.literal_eval(of) for name, (of,) in _assignments(settings_cell(path)["source"]).items()}
    own = {"WIDTHS": (16, 16, 16), "NETWORK": "plain", "PREDICTION": "epsilon", "OPTIMIZER": "adam", "SEEDS": [7],
           "SAMPLE_SEEDS": [8], "GUIDANCE_INTERVAL": (0.1, 9.0), "HELD_OUT": 50}  # fmt: skip
    numbers = {
        name: 2 * of + 1 for name, of in values.items() if isinstance(of, int | float) and of not in (True, False)
    }
    shares = dict.fromkeys(
        ("EMA_DECAY", "LR_DECAY", "LABEL_DROPOUT", "UNAUGMENTED", "STROKE", "SCALE", "VIEW_JITTER"), 0.7
    )
    changed = numbers | shares | own
    return {name: of for name, of in changed.items() if name in values}


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
def test_page_3_records_how_the_ways_were_walked_whatever_the_settings_say_when_it_measures(
    tmp_path, cifar, monkeypatch
):
    changes = {"DATA": "official", "MEASURE": "yes", "RUNS": str(tmp_path), "ROWS": 3, "PAIRS": 2, "MIDDLES": 3,
               "INVERSION_STEPS": 2, "SAMPLER_STEPS": 3, "ANCESTRAL_STEPS": 7, "SEED": 4}  # fmt: skip
    cells = code(NOTEBOOKS[2])
    at = next(i for i, cell in enumerate(cells) if "def measure(" in cell["source"])
    kernel = run(NOTEBOOKS[2], cells[:at], **changes)
    kernel |= others(NOTEBOOKS[2]) | {"PAIRS": 5, "MIDDLES": 4}
    seen = {}
    monkeypatch.setattr(walks, "smoothness", lambda net, ways, judge, *how: seen.update(ways=ways, how=how) or {})
    monkeypatch.setattr(walks, "middles", lambda net, how, judge, images, *by: seen.update(middle=how, by=by) or {})
    monkeypatch.setattr(walks, "there_and_back", lambda *_: (None, None, {}))
    monkeypatch.setattr(reports, "growth_curves", lambda *_: None)
    exec(cells[at]["source"], kernel)
    said = results.load_card("interpolation", tmp_path)["settings"]
    assert said == {
        "rows": 3,
        "sampler_steps": 3,
        "guidance": 2.5,
        "seed": 4,
        "interval": [0.05, 6.0],
        "ancestral_steps": 7,
    }
    assert (seen["how"], seen["by"]) == ((5, 3, 4), (4, 4))  # pairs, rows, seed; how many middles, seed
    glide, ddpm = seen["ways"][walks.GLIDE], seen["ways"][walks.SHARED]
    assert [len(of["sigmas"]) for of in (glide, seen["middle"], ddpm)] == [4, 4, 8]
    assert {of["guidance"] for of in (glide, seen["middle"], ddpm)} == {2.5}


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
def test_page_2_records_how_neon_and_the_judged_samples_were_drawn_whatever_the_settings_say(
    tmp_path, cifar, monkeypatch
):
    """Every setting is changed after the cells that made the recipes; then the cells that train and judge are run."""
    changes = {"DATA": "official", "TRAIN": "yes", "MEASURE": "yes", "STEPS": 3, "NEON_STEPS": 1, "NEON_SAMPLES": 16,
               "BATCH": 16, "SAMPLES": 10, "SAMPLER_STEPS": 3, "HELD_OUT": 60, "WIDTHS": (8, 8, 8),
               "RUNS": str(tmp_path)}  # fmt: skip
    cells = code(NOTEBOOKS[1])
    at, trains, loads, samples, judges = (
        next(i for i, cell in enumerate(cells) if start in cell["source"])
        for start in (
            "neon = {",
            "base, log, certificate =",
            "judging = (judges",
            "sampling = {",
            "studies.fid_of(",
        )
    )
    kernel = run(NOTEBOOKS[1], cells[: at + 1], **changes)
    recipe, neon, drawn = dict(kernel["recipe"]), dict(kernel["neon"]), []
    sample = diffusion.sample
    monkeypatch.setattr(diffusion, "sample", lambda *of, **how: drawn.append((of[1], how)) or sample(*of, **how))
    fixed = {"SAMPLES": 10, "SAMPLE_SEEDS": [1, 2], "NEON_WEIGHT": 0.5, "STEPS": 3}
    kernel |= others(NOTEBOOKS[1]) | fixed
    exec(cells[trains]["source"], kernel)
    said = results.load_card("diffusion", tmp_path)
    of = results.fingerprint(kernel["base"])
    expected = recipe | {"neon": neon | {"after": recipe, "of": of, "weight": 0.5}}
    assert said["settings"] == json.loads(json.dumps(expected))
    assert said["steps"] == 3
    labels, how = drawn[0]
    assert (len(labels), len(how["sigmas"]) - 1, how["seed"]) == (
        neon["samples"],
        neon["sampler_steps"],
        recipe["seed"] + 4,
    )
    kernel |= {"SAMPLER_STEPS": 4, "GUIDANCE": 1.5}
    exec(cells[loads]["source"], kernel)
    exec(cells[samples]["source"], kernel)
    drawn.clear()
    kernel |= {"SAMPLER_STEPS": 6, "GUIDANCE": 3.0, "GUIDANCE_INTERVAL": (0.0, 1.0)}
    exec(cells[judges]["source"], kernel)
    metrics = results.load_card("diffusion", tmp_path)["metrics"]
    assert {(len(how["sigmas"]) - 1, how["guidance"], how["interval"]) for _, how in drawn} == {(4, 1.5, (0.1, 9.0))}
    assert metrics["sampler"] == "DPM-Solver++ (2M), 4 steps, guidance 1.5 for σ in (0.1, 9.0)"


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
def test_page_1_records_the_settings_that_each_net_was_trained_by(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    cells = code(NOTEBOOKS[0])
    trains, keeps = (
        next(i for i, c in enumerate(cells) if s in c["source"]) for s in ("trained = {}", "classifier_card(")
    )
    kernel = definitions(NOTEBOOKS[0], "recipe = ", "def loss_and_accuracy(", "def train(", DATA="demo", TRAIN="yes",
                         RUNS=str(tmp_path), STEPS=2, SEEDS=[5])  # fmt: skip
    exec(cells[trains]["source"], kernel)
    (net, history, certificate), *_ = kernel["trained"]["digit-sum net"]
    asked = kernel["recipe"] | kernel["small"] | {"seed": 5}
    kernel |= others(NOTEBOOKS[0])
    exec(next(cell["source"] for cell in cells if "recipe = " in cell["source"]), kernel)
    few = lambda root, split, source: tuple(of[:70] for of in addnist(root, "test", source))  # noqa: E731
    addnist = data.addnist
    monkeypatch.setattr(data, "addnist", few)
    monkeypatch.setattr(data, "ADDNIST", {"demo": "printed digits"})
    kernel |= {"small": {}, "VIEWS": 1}
    exec(cells[keeps]["source"], kernel)
    card = results.load_card("classifier_best", tmp_path)
    assert card["settings"] == json.loads(json.dumps(asked))
    assert ([row["seed"] for row in card["seeds"]], card["data"]) == ([5], "printed digits")


SHOWN = {  # what is shown without a training, a download or a sample: cells that make what the others need, and these
    "01_classifier": (["limits = Budget(", "recipe = ", "pair = {", "= results.newest(RUNS", "test_labels ="],
                      ["layer_diagram(", "adder_diagram(", "doubt = ", "classifier_table(", "share = ",
                       "reports.ablation(", "reports.answers(", "reports.misread(", "reports.sure_and_wrong(",
                       "(3, 5, 8)]"]),
    "02_diffusion": ([], ["unet_diagram(", "fid_waterfall(", "reports.samplers(", "speed_table("]),
    "03_interpolation": ([], ["growth_curves(", "smoothness_table(", "middles_table("]),
}  # fmt: skip


def said_by(outputs):
    """The words of a cell's outputs: what is printed, tables, and the sentences that describe its pictures."""
    words = []
    for output in outputs:
        if output["output_type"] == "stream":
            words.append("".join(output["text"]))
        words.append("".join(output.get("data", {}).get("text/markdown", "")))
        words.append(output.get("metadata", {}).get("image/png", {}).get("alt", ""))
    return "\n".join(part.strip() for part in words if part.strip())


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_stored_lines_tables_and_pictures_are_what_the_code_makes_of_the_shipped_cards(
    path, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(ROOT)
    for name, value in {"DATA": "demo", "TRAIN": "no"}.items():
        monkeypatch.setenv(name, value)
    kernel = run(path, beginning(path), RUNS=str(tmp_path), **full(path))
    makes, shows = SHOWN[path.stem]
    if path == NOTEBOOKS[0]:
        kernel["net"], kernel["digits"] = classifiers.DigitSumClassifier(), data.digits("", "test")
        results.load_weights("classifier_best", kernel["net"])
    else:
        name = "interpolation" if path == NOTEBOOKS[2] else "diffusion_sweep"
        denoiser, card = studies.load_denoiser("diffusion", results.WEIGHTS)
        four = walks.REPORT, walks.SHARED, walks.STRAIGHT, walks.GLIDE
        kernel |= {"card": card, "ours": denoiser, "four": four, "measured": results.load_card(name), "trains": False}
    found = 0
    for cell in code(path):
        if any(start in cell["source"] for start in makes):
            exec(cell["source"], kernel)
        if any(start in cell["source"] for start in shows):
            capsys.readouterr()
            body = ast.parse(cell["source"]).body
            *first, last = body if isinstance(body[-1], ast.Expr) else [*body, ast.parse("None").body[0]]
            if "growth_curves(" not in cell["source"]:  # which measures first
                exec(compile(ast.Module(first, []), path.name, "exec"), kernel)
            out = eval(compile(ast.Expression(last.value), path.name, "eval"), kernel)
            words = [capsys.readouterr().out.strip(), getattr(out, "alt", ""), str(getattr(out, "data", ""))]
            assert "\n".join(part.strip() for part in words if part.strip()) == said_by(cell["outputs"])
            found += 1
    assert found == len(shows)
    for name in ("classifier_paper", "classifier_best") if path == NOTEBOOKS[0] else ():
        first = results.load_card(name)["seeds"][0]["test_accuracy"]
        line = f"{first:.2%} of 10,000 images, AddNIST rebuilt from MNIST; its card: {first:.2%}"
        assert line in json.dumps(json.loads(path.read_text())["cells"], ensure_ascii=False)  # to the image


def full(path):
    """The settings of a page as they are written, in place of the mocks."""
    return {name: ast.literal_eval(of) for name, (of,) in _assignments(settings_cell(path)["source"]).items()
            if name not in ("RUNS", "DATA", "TRAIN")}  # fmt: skip
