"""What must hold for the notebooks as files; pytest runs them too, through nbmake (see pyproject.toml)."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

from helpers import training

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(ROOT.glob("0*.ipynb"))
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


def _code(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in cells if cell["cell_type"] == "code"]


def _assignments(source):
    """Name -> list of the values assigned to it at the top level, as syntax trees."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                found.setdefault(getattr(target, "id", None), []).append(node.value)
    return found


def _settings(path):
    (cell,) = [c for c in _code(path) if "parameters" in c["metadata"].get("tags", [])]
    return cell


def _run(path, cells, **changes):
    """Execute cells with the settings nbmake mocks, and further changes to them; returns the kernel's names."""
    settings, kernel = _settings(path), {"__name__": "__main__"}
    for cell in cells:
        exec(compile(cell["source"], path.name, "exec"), kernel)
        if cell == settings:
            kernel |= settings["metadata"]["nbmake"]["mock"] | changes
    plt.close("all")
    return kernel


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == list(FULL_SIZE)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_settings_are_literals_of_full_size_with_a_comment_each(path):
    cell = _settings(path)
    values = {}
    for node in ast.parse(cell["source"]).body:
        assert isinstance(node, ast.Assign), "the settings cell holds literals only"
        assert node.targets[0].id.isupper()
        values[node.targets[0].id] = ast.literal_eval(node.value)
    assert len(values) == len(cell["source"].splitlines())
    assert values | FULL_SIZE[path.stem] == values


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_mock_replaces_a_literal_of_its_own_cell(path):
    mocked = [cell for cell in _code(path) if "nbmake" in cell["metadata"]]
    assert mocked == [_settings(path)]
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
    lengths = sorted(len(cell["source"].splitlines()) for cell in _code(path))
    assert lengths[-1] <= 40
    assert lengths[len(lengths) // 2] <= 12
    for cell in _code(path):
        assert not re.search(r"^\s*[!%]", cell["source"], re.MULTILINE), "shell lines and magics pass unnoticed"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_stored_outputs_are_whole_and_clean(path):
    cells = _code(path)
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
    cells = _code(path)
    _run(path, [*cells, *cells], MEASURE="no", RUNS=str(tmp_path))


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
def test_the_last_tenth_of_the_classifiers_steps_sees_images_unmoved(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA", "demo")
    cells = _code(NOTEBOOKS[0])
    end = next(i for i, cell in enumerate(cells) if cell["source"].startswith("def train("))
    kernel, moved = _run(NOTEBOOKS[0], cells[: end + 1], RUNS=str(tmp_path)), []
    kernel["jitter"] = lambda x, settings: moved.append(settings["degrees"]) or x
    kernel["train"](kernel["classifiers"].PaperClassifier, 0, steps=20)
    assert moved == [kernel["DEGREES"]] * 18


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_cell_that_comes_too_early_misses_a_name_and_leaves_nothing(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    imports = next(cell for cell in _code(path) if "from helpers import" in cell["source"])
    too_early = 0
    for cell in _code(path):
        kernel = {"__name__": "__main__"}
        exec(compile(imports["source"], path.name, "exec"), kernel)
        try:
            exec(compile(cell["source"], path.name, "exec"), kernel)
        except NameError:
            too_early += 1
    assert too_early > len(_code(path)) / 2
    assert not list(tmp_path.iterdir())


def test_the_diffusion_loop_trains_in_float16_as_on_a_card_without_bfloat16(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA", "demo")
    cells = _code(NOTEBOOKS[1])
    end = next(i for i, cell in enumerate(cells) if cell["source"].startswith("def train("))
    kernel = _run(NOTEBOOKS[1], cells[: end + 1], RUNS=str(tmp_path))
    kernel["amp"] = torch.float16
    _, history, certificate = kernel["train"](steps=2, batch=2)
    assert history[0].isfinite().all()
    assert certificate["steps"] == 2  # none was skipped: the loss was scaled into float16's range
    state = training._load(next(tmp_path.rglob("*.ckpt")).read_bytes().partition(b"\n")[2], "checkpoint")
    assert state["parts"]["scaler"]["scale"] == 2.0**16


def test_the_colab_cell_is_the_same_everywhere():
    assert len({next(c["source"] for c in _code(path) if "google.colab" in c["source"]) for path in NOTEBOOKS}) == 1


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_the_colab_cell_fetches_the_repository_into_an_empty_folder(tmp_path):
    origin, stand_in, session = tmp_path / "origin", tmp_path / "stand-in", tmp_path / "content"
    (stand_in / "google" / "colab").mkdir(parents=True)
    (stand_in / "google" / "colab" / "__init__.py").touch()
    session.mkdir()
    shutil.copytree(ROOT / "helpers", origin / "helpers", ignore=shutil.ignore_patterns("__pycache__"))
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for command in (["init", "--quiet"], ["add", "."], [*who, "commit", "--quiet", "--message", "all"]):
        subprocess.run(["git", *command], cwd=origin, check=True)
    cell = next(c["source"] for c in _code(NOTEBOOKS[0]) if "google.colab" in c["source"])
    program = f"import google.colab\n{cell}\nimport helpers.budget\nprint(helpers.budget.__file__)"
    environment = {**os.environ, "REPOSITORY": origin.as_uri(), "PYTHONPATH": str(stand_in)}
    for folder in (session, session / "bundle", session):  # at first, run again, and in a restarted kernel
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.strip()) == session / "bundle" / "helpers" / "budget.py"
