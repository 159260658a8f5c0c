"""README's tables are the result cards'; what the pages say in words the cards bear out; no figure stands in a page."""

import json
import re
from pathlib import Path
from statistics import mean, stdev

import pytest

from helpers import reports
from helpers.results import load_card

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def prose(text):
    """A page without its references, code, formulas and tables."""
    text = text.split("## References")[0]
    text = re.sub(r"```.*?```|\$\$.*?\$\$|\$[^$]*\$|!?\[[^\]]*\]\([^)]*\)|`[^`]*`", " ", text, flags=re.DOTALL)
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("|"))


def markdown(notebook):
    cells = json.loads(next(ROOT.glob(f"0{notebook}*.ipynb")).read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def over(card, key):
    return [row[key] for row in card["seeds"]]


def readme_rows():
    """The rows of README's tables that quote cards."""
    paper, best, diffusion = (load_card(name) for name in ("classifier_paper", "classifier_best", "diffusion"))
    tests, fid, batches = over(best, "test_accuracy"), diffusion["metrics"]["fid"], []
    for split in ("train", "test"):
        accuracy, spread = mean(over(best, f"{split}_accuracy")), mean(over(best, f"{split}_accuracy_std_over_batches"))
        batches.append(f"{accuracy:.3f} ± {spread:.3f}")
    assert diffusion["metrics"]["n"] == 10_000
    return [
        f"| AddNIST (here rebuilt from MNIST), test accuracy | 74.9% | **{mean(tests):.2%} ± {stdev(tests):.2%}** "
        f"({len(tests)} seeds) |",
        f"| parameters and steps (limits 100,000 and 10,000) | 98,740 and 10,000 | {best['parameters']:,} and "
        f"{best['steps']:,} |",
        f"| CIFAR-100, FID of 10,000 samples, lower is better | 91.78 | **{fid:.2f}** |",
        f"| parameters and steps (limits 1,000,000 and 50,000) | 948,856 and 50,000 | {diffusion['parameters']:,} and "
        f"{diffusion['steps']:,} |",
        f"refuses more | {paper['parameters']:,} and {best['parameters']:,} |",
        f"| notebook 1, *The result* | {best['steps']:,} |",
        f"| {batches[0]} and {batches[1]} over batches |",
        f"| notebook 2, *The network* | {diffusion['parameters']:,} |",
        f"| notebook 2, *Training* | {diffusion['steps']:,} |",
        f"| notebook 2, *The FID* | {fid:.2f} |",
        f"draws an image in {diffusion['metrics']['denoiser_evaluations']} evaluations",
    ]


def test_readmes_tables_are_the_cards():
    for row in readme_rows():
        assert row in README, f"this is missing, or stands there with other figures:\n{row}"


@pytest.mark.parametrize("text", [README, *map(markdown, (1, 2, 3))], ids=["README", "1", "2", "3"])
def test_no_measured_figure_stands_in_prose(text):
    """Neither a decimal nor a share: cells print them, from cards."""
    versions = {"3.10", "3.13", "3.0"}  # of Python, of a licence
    assert set(re.findall(r"(?<![\w#/.=])(\d[\d,]*\.\d+%?|\d+%)", prose(text))) <= versions


def test_the_parts_of_pages_that_readme_names_are_there():
    for number, names in re.findall(r"notebook (\d), ((?:\*[^*]+\*(?:, )?)+)", README):
        for name in re.findall(r"\*([^*]+)\*", names):
            assert f"## {name}" in markdown(number), f"notebook {number} has no part {name}"


def test_what_page_1_says_in_words():
    paper, best, asked = (load_card(f"classifier_{name}") for name in ("paper", "best", "questions"))
    wrong = {name: pair[0] for name, pair in reports.errors(load_card("classifier_ingredients")).items()}
    full, learned = wrong.pop("all ingredients"), wrong.pop("learned sum")
    assert min(wrong, key=wrong.get) == "no EMA" or min(wrong.values()) > 0.9 * full
    most = sorted(wrong, key=wrong.get)[-2:]
    assert set(most) == {"separate readers", "no batch norm"}  # "sharing the reader and batch norm count most"
    answers = {name: pair[0] for name, pair in reports.errors(asked).items()}
    first_paper, first = (10_000 * (1 - card["seeds"][0]["unseen_accuracy"]) for card in (paper, best))
    assert answers["learned sum"] > full  # all steps of a learned sum against few of the exact one
    assert learned > answers["learned sum"]
    assert asked["settings"]["seeds"] == [0]
    assert 0.8 * first < answers["digit-sum net, told every digit"] < first  # "add little"
    assert abs(answers["paper net, twice as deep"] - first_paper) < 0.05 * first_paper  # "does no better"
    assert {key for key, value in paper["settings"].items() if value != best["settings"][key]} == {"lr"}  # one recipe
    gain = mean(over(paper, "test_accuracy_tta")) - mean(over(paper, "test_accuracy"))
    assert 0.01 < gain
    assert abs(mean(over(best, "test_accuracy_tta")) - mean(over(best, "test_accuracy"))) < 0.001


def test_what_page_2_says_in_words():
    card, sweep, plain, paper = (load_card(f"diffusion{name}") for name in ("", "_sweep", "_plain", "_paper"))
    assert sweep["weights_sha256"] == card["sha256"]
    rows = {(row["steps"], row["guidance"], tuple(row["interval"]), row["neon"]): row for row in sweep["rows"]}
    usual = (0.05, 6.0)
    ours, ten, fourteen = (rows[steps, 2.5, usual, 1.0] for steps in (20, 10, 14))
    unguided, everywhere = rows[20, 1.0, usual, 1.0], rows[20, 2.5, (0.0, 80.0), 1.0]
    without = rows[20, 2.5, usual, 0.0]
    assert fourteen["fid"] - ours["fid"] < 1 < ten["fid"] - ours["fid"]  # "Fourteen steps do nearly as well"
    assert unguided["precision"] < ours["precision"] - 0.1
    assert 0 < unguided["recall"] - ours["recall"] < 0.02  # "hardly more varied"
    assert everywhere["recall"] < ours["recall"] - 0.05  # "costs variety"
    assert without["fid"] > ours["fid"] + 1
    assert without["kid"] > ours["kid"]  # "Neon helps"
    of_ddpm, of_ours = paper["rows"].values()
    assert (of_ddpm["evaluations"], of_ours["evaluations"]) == (1_000, 20)
    assert abs(of_ddpm["fid"] - of_ours["fid"]) < 1  # "gain nothing"
    fids = [91.78, *(of["metrics"]["fid"] for of in (paper, plain, card))]
    assert fids == sorted(fids, reverse=True)
    assert fids[2] < fids[0] / 4  # "halve the FID twice over"
    assert fids[3] < 16.80  # below the StyleGANs
    assert plain["settings"]["batch"] != card["settings"]["batch"]
    speed = load_card("speed_cuda")["rows"]
    eager, compiled = speed["notebook loop"], speed["notebook loop, compiled"]
    assert compiled["images_per_second"] > 2 * eager["images_per_second"]
    assert compiled["peak_memory_mib"] < eager["peak_memory_mib"] / 2


def test_what_page_3_says_in_words():
    card = load_card("interpolation")
    assert card["weights_sha256"] == load_card("diffusion")["sha256"]
    grown = {name: lengths[-1] for name, (_, lengths) in reports.growth(card["smoothness"]).items() if len(lengths) > 1}
    for name, times in grown.items():
        assert times > 3.9 if "fresh noise" in name else times < 2, name  # four times the frames, the length four times
    glide = reports.growth(card["smoothness"])["deterministic, noise slerp; class slerp"][1]
    assert glide[1] / glide[0] > glide[2] / glide[1]  # the growth of one doubling and of the next
    uneven = {name: row["unevenness"][0] for name, row in card["smoothness"]["rows"].items()}
    assert max(uneven, key=uneven.get) == "DDPM, shared noise; class switches"  # "where little else moves"
    assert (
        uneven["deterministic, noise slerp; class switches"] > 1.3 * uneven["deterministic, noise slerp; class slerp"]
    )
    assert min(uneven, key=uneven.get).endswith(("re-timed", "class slerp"))
    middles = {name: row["fid"] for name, row in card["middles"]["rows"].items()}
    start = middles.pop("starting points")
    assert middles["slerp of noise"] - start < 1  # "as good as its ends"
    assert middles["lerp of noise"] - start > 50  # "loses much"
    assert start + 5 < middles["slerp of noise and class"] < middles["slerp of noise, lerp of class"]


def test_commands_are_the_ones_ci_runs():
    commands = re.findall(r"```bash\n(.*?)\n```", README, re.DOTALL)
    assert sum("--execute" in command for command in commands) == 1
    in_ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert any(command.replace("pip install", "pip install --quiet") in in_ci for command in commands)


def test_every_file_it_names_is_there():
    names = re.findall(r"`([\w./]+\.(?:ipynb|py|txt))`", README)
    for name in names + re.findall(r"\]\(((?:\.github/|0)[^)]+)\)", README):
        assert (ROOT / name).exists(), name


def test_the_lines_for_a_python_shell_run(tmp_path, monkeypatch):
    (lines,) = re.findall(r"```python\n(.*?)\n```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(lines.replace("karras_sigmas(20)", "karras_sigmas(2)"), {})
    assert (tmp_path / "bicycles.png").read_bytes().startswith(b"\x89PNG")
