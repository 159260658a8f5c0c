"""The figures of README and of the notebooks' prose are the result cards'; README's commands are the ones that run."""

import json
import re
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch

from helpers.plots import mean_std
from helpers.results import load_card

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def prose(text):
    """A page without its references, code and formulas."""
    text = text.split("## References")[0]
    return re.sub(r"```.*?```|\$\$.*?\$\$|\$[^$]*\$|!?\[[^\]]*\]\([^)]*\)|`[^`]*`", " ", text, flags=re.DOTALL)


def cells(notebook):
    return json.loads(next(ROOT.glob(f"0{notebook}*.ipynb")).read_text(encoding="utf-8"))["cells"]


def markdown(notebook):
    return "\n\n".join("".join(c["source"]) for c in cells(notebook) if c["cell_type"] == "markdown")


def printed(notebook):
    """What the stored run of a notebook printed, tables too, as one line of text."""
    outputs = (output for c in cells(notebook) for output in c.get("outputs", []))
    texts = ("".join(output.get("text", output.get("data", {}).get("text/markdown", ""))) + " " for output in outputs)
    return " ".join(" ".join(texts).split())


def figures(text):
    """The decimals and shares in a text: what was measured."""
    return set(re.findall(r"(?<![\w#/.=])(\d[\d,]*\.\d+%?|\d+%)", text))


def over(card, key):
    return [row[key] for row in card["seeds"]]


def of_the_cards(form, *values):
    return {format(value, form) for value in values}


def readme_rows():
    """The rows of README's tables that quote cards."""
    paper, best, diffusion = (load_card(name) for name in ("classifier_paper", "classifier_best", "diffusion"))
    plain, ddpm = (load_card(name) for name in ("diffusion_plain", "diffusion_paper"))
    paper_tests, tests = (over(card, "test_accuracy") for card in (paper, best))
    batches = []
    for split in ("train", "test"):
        accuracy, spread = mean(over(best, f"{split}_accuracy")), mean(over(best, f"{split}_accuracy_std_over_batches"))
        batches.append(f"{accuracy:.3f} ± {spread:.3f}")
    views, metrics = over(best, "test_accuracy_tta"), diffusion["metrics"]
    assert metrics["n"] == plain["metrics"]["n"] == ddpm["metrics"]["n"] == 10_000
    assert {key for key, value in paper["settings"].items() if value != best["settings"][key]} == {"lr"}  # one recipe
    for card in (paper, best):  # what README says of both
        assert (len(card["seeds"]), card["device"], card["view_jitter"]) == (3, "x86_64 cpu, 2 threads", 0.25)
        assert (card["settings"]["images"], card["protocol"][:26]) == (45_000 + 15_000, "trained on train and valid")
    return [
        f"| AddNIST, the paper net: test accuracy | 74.9% | {mean(paper_tests):.1%} ± {stdev(paper_tests):.1%}¹ "
        f"({len(paper_tests)} seeds) |",
        f"| AddNIST, the digit-sum net, same recipe: test accuracy | | **{mean(tests):.2%} ± {stdev(tests):.2%}**¹ "
        f"({len(tests)} seeds) |",
        f"| the same, test-time augmentation, {best['views']} views | | {mean(views):.2%} ± {stdev(views):.2%}¹ |",
        f"| parameters (limit 100,000) | 98,740 | {paper['parameters']:,} and {best['parameters']:,} |",
        f"| steps (limit 10,000) | 10,000 | {paper['steps']:,} and {best['steps']:,}, "
        f"batches of {best['settings']['batch']} |",
        f"| CIFAR-100, class-conditional diffusion, looped U-Net: FID | 91.78 | **{metrics['fid']:.2f}**² "
        f"(n = {metrics['n']:,}) |",
        f"| plain U-Net, without Neon, batches of {plain['settings']['batch']}: FID | | "
        f"{plain['metrics']['fid']:.2f}² |",
        f"| plain U-Net, paper recipe (our reading of the report), our solver: FID | | {ddpm['metrics']['fid']:.2f}² |",
        f"| parameters (limit 1,000,000) | 948,856 | {diffusion['parameters']:,} |",
        f"| steps (limit 50,000) | 50,000 | {diffusion['steps']:,}, batch {diffusion['settings']['batch']}, "
        f"on one {diffusion['device']} in {diffusion['seconds'] / 60:.0f} min, Neon's samples on top |",
        f"| {batches[0]} and {batches[1]} over batches; test {mean(tests):.4f} ± {stdev(tests):.4f} over ",
        f"refuses more | {paper['parameters']:,} and {best['parameters']:,} |",
        f"means of {best['history']['every']} and {diffusion['history']['every']} steps",
        f"| notebook 2, *Training* | {diffusion['steps']:,} |",
        f"| notebook 2, *The FID* | {metrics['fid']:.2f} (n = {metrics['n']:,}) |",
    ]


def in_readme():
    paper, best, metrics = (
        load_card("classifier_paper"),
        load_card("classifier_best"),
        load_card("diffusion")["metrics"],
    )
    published = {"74.9%", "92.08%", "97.91%", "91.78", "18.44", "16.80", "11.25"}
    versions = {"3.10", "3.13", "0.1"}  # of Python, of a package
    rates = {str(card["settings"]["lr"]) for card in (paper, best)}
    return published | versions | rates | figures(" ".join(readme_rows())) | {f"{metrics['fid_by_seed'][1]:.2f}"}


def in_notebook_1():
    paper, best = (load_card(name) for name in ("classifier_paper", "classifier_best"))
    (learned,) = load_card("classifier_learned_sum")["rows"]["learned sum, all steps"]["unseen_accuracy"]
    errors = {name: [1 - right for right in row["unseen_accuracy"]]
              for name, row in load_card("classifier_ingredients")["rows"].items()}  # fmt: skip
    mistakes, full = {name: mean(of) for name, of in errors.items()}, errors["all of them"]
    # What the prose says of the ingredients in words and whole numbers.
    assert 1.8 < mistakes["separate readers"] / mean(full) < 2
    assert all(sum(map(float.__gt__, errors[worse], full)) == 3 for worse in ("no jitter", "constant learning rate"))
    assert abs(mistakes["no EMA"] - mean(full)) < stdev(full)
    gains = [mean(over(card, "test_accuracy_tta")) - mean(over(card, "test_accuracy")) for card in (paper, best)]
    assert 0.01 < gains[0] < 0.015  # "more than a point"
    assert abs(gains[1]) < stdev(over(best, "test_accuracy"))  # "nothing that three seeds could show"
    assert len(load_card("classifier_ingredients")["settings"]["seeds"]) == 3
    long = load_card("classifier_learned_sum")["settings"]
    assert (long["steps"], long["seeds"], 3 * long["batch"]) == (best["steps"], [0], best["settings"]["batch"])
    misread = over(best, "misread_digits")
    said = f"every seed's net misreads: on MNIST {len(set.intersection(*map(set, misread)))} of its {len(misread[0])}."
    assert said in " ".join(markdown(1).split())
    worst = "{:.0f} errors in 10,000 become {:.0f} without jitter and {:.0f} at a constant learning rate"
    named = [10_000 * mistakes[name] for name in ("all of them", "no jitter", "constant learning rate")]
    assert worst.format(*named) in " ".join(markdown(1).split())
    coarse = {name: row["unseen_accuracy"] for name, row in load_card("classifier_precision")["rows"].items()}
    apart = [abs(b - a) for a, b in zip(coarse["float32"], coarse["bfloat16"], strict=True)]
    steps = [mean(of[i] for of in paper["history"]["accuracy"]) for i in (89, 90)]  # before and after nine tenths
    speed = load_card("speed_cuda")["rows"]
    eager, compiled = speed["notebook loop"], speed["notebook loop, compiled"]
    faster = compiled["images_per_second"] / eager["images_per_second"]
    assert compiled["peak_memory_mib"] < eager["peak_memory_mib"] / 2
    tests, first = (mean(over(card, "test_accuracy")) for card in (best, paper)), (best["seeds"][0], paper["seeds"][0])
    best_tests, paper_tests = tests
    return (
        {"74.9%", "80%"}  # the report; an example
        | of_the_cards(".2%", best_tests)
        | of_the_cards(".1%", paper_tests, learned, mean(over(best, "unseen_accuracy")))
        | of_the_cards(".1%", *(row["test_accuracy"] for row in first))
        | of_the_cards(".0%", 1 - mistakes["learned sum"])
        | of_the_cards(".1f", mistakes["no batch norm"] / mean(full), faster)
        | of_the_cards(".2f", *steps)
        | of_the_cards(".1f", *(100 * gap for gap in apart), *(100 * mean(of) for of in coarse.values()))
        | of_the_cards(".1%", *(stdev(of) for of in coarse.values()))
    )


def in_notebook_2():
    card, sweep, plain, paper = (load_card(f"diffusion{name}") for name in ("", "_sweep", "_plain", "_paper"))
    speed = load_card("speed_cuda")["rows"]
    faster = speed["notebook loop, compiled"]["images_per_second"] / speed["notebook loop"]["images_per_second"]
    assert sweep["weights_sha256"] == card["sha256"]
    rows = {(row["steps"], row["guidance"], tuple(row["interval"]), row["neon"]): row for row in sweep["rows"]}
    usual = (0.05, 6.0)
    default, fewer, more = (rows[steps, 2.5, usual, 1.0] for steps in (20, 10, 30))
    unguided, strong, without = rows[20, 1.0, usual, 1.0], rows[20, 3.0, usual, 1.0], rows[20, 2.5, usual, 0.0]
    everywhere, above = rows[20, 2.5, (0.0, 80.0), 1.0], rows[20, 2.5, (0.3, 6.0), 1.0]
    # What the prose says of the sweep in words.
    assert max(abs(row["fid"] - default["fid"]) for row in (everywhere, above)) < 1
    assert fewer["fid"] < 1.05 * default["fid"]
    assert 1.8 < fewer["kid"] / default["kid"] < 2
    assert default["fid"] < without["fid"]
    assert default["kid"] < without["kid"]
    assert default["recall"] > without["recall"]
    assert default["precision"] < without["precision"]
    r, fids = card["settings"], [of["metrics"]["fid"] for of in (paper, plain, card)]
    assert (r["batch"], plain["settings"]["batch"], r["steps"]) == (176, 384, 49_000)
    told = " ".join(markdown(2).split())
    assert f"ours needs {card['metrics']['denoiser_evaluations']}, or {fewer['evaluations']} at some loss" in told
    assert re.search("reaches {:.2f} with us .* guidance {:.2f}. .* to {:.2f};".format(*fids), told)
    published = {"91.78", "11.25", "12.87"}
    chosen = {"0.0001", "0.001", "2.5", "3.0", "3.25", "5%", "0.18", "0.4"}  # rates, scales, an axis, a noise level
    seen = (r["steps"] * r["batch"] / 1e6, r["neon"]["steps"] * r["batch"] / 1e6)
    return (
        published
        | chosen
        | of_the_cards(".2f", *(of["metrics"]["fid"] for of in (card, plain, paper)), without["fid"])
        | of_the_cards(".2f", *(row["fid"] for row in plain["rows"].values()))
        | of_the_cards(".2f", fewer["fid"] - default["fid"], default["fid"] - more["fid"])
        | of_the_cards(".3f", *(row["recall"] for row in (default, unguided, strong, everywhere, above)))
        | of_the_cards(".3f", *(row["precision"] for row in (default, unguided, above, without)))
        | of_the_cards(".1f", default["fid"] - strong["fid"], faster, *seen)
    )


def in_notebook_3():
    card = load_card("interpolation")
    back = card["inversion"]
    classes = torch.load(ROOT / "weights" / "diffusion.pt")["net.class_embedding.weight"][:100]
    norms, pairs = classes.norm(dim=1), torch.combinations(torch.arange(100))  # (100,), (4950, 2)
    shorter = 1 - (classes[pairs].mean(dim=1).norm(dim=1) / norms[pairs].mean(dim=1)).mean()
    assert card["weights_sha256"] == load_card("diffusion")["sha256"]
    rows, middles = card["smoothness"]["rows"], card["middles"]["rows"]
    length = {name: {int(count): mean for count, (mean, _) in row["length"].items()} for name, row in rows.items()}
    uneven = {name: row["unevenness"][0] for name, row in rows.items()}
    slerps, switched = (f"deterministic, noise slerp; class {way}" for way in ("slerp", "switches"))
    shared, glide = length["DDPM, shared noise; class slerp"], length[slerps]
    fresh = [length[f"DDPM, fresh noise; class {way}"] for way in ("switches", "slerp")]
    assert all(shared[count] < glide[count] for count in (10, 19, 37))  # deterministic is not what shortens a path
    lerps = "deterministic, noise lerp; class slerp", "deterministic, noise slerp; class lerp"
    assert card["smoothness"]["pairs"] == len(rows[slerps]["each"]) == 12
    apart = [[a - b for a, b in zip(rows[of]["each"], rows[slerps]["each"], strict=True)] for of in lerps]
    assert mean(apart[0]) > 0 > mean(apart[1])  # longer by the straight line through noise, shorter by the other
    start, on_sphere = middles["starting points"], middles["slerp of noise"]
    both = middles["slerp of noise and class"]["mean_distance"]
    return (
        {"29%"}  # 1 - √½
        | of_the_cards(".1f", 3072**0.5, norms.min(), norms.max())
        | of_the_cards(".0%", shorter, glide[19] / glide[10] - 1, glide[37] / glide[19] - 1)
        | of_the_cards(".1f", *(of[37] / of[10] for of in (*fresh, shared, glide)), glide[37], length[switched][37])
        | of_the_cards(".1f", back["psnr"], back["psnr_std_over_images"])
        | of_the_cards(".1f", uneven["DDPM, shared noise; class switches"], uneven[switched], uneven[slerps])
        | of_the_cards(".2f", uneven[slerps], uneven[f"{slerps}; re-timed"])
        | of_the_cards(".1f", *(abs(mean(of)) for of in apart), *map(stdev, apart))
        | of_the_cards(".1f", start["fid"], on_sphere["fid"], middles["lerp of noise"]["fid"])
        | of_the_cards(".1f", max(row["fid"] for row in middles.values()), on_sphere["mean_distance"], both)
    )


@pytest.mark.parametrize(
    ("text", "known"),
    [(README, in_readme), (markdown(1), in_notebook_1), (markdown(2), in_notebook_2), (markdown(3), in_notebook_3)],
    ids=["README", "1", "2", "3"],
)
def test_every_figure_in_prose_is_a_cards_and_none_of_these_is_missing(text, known):
    assert figures(prose(text)) == known()


def test_readmes_tables_are_the_cards():
    for row in readme_rows():
        assert row in README, f"this is missing, or stands there with other figures:\n{row}"


def test_the_table_of_ingredients_is_the_cards():
    for name, row in load_card("classifier_ingredients")["rows"].items():
        accuracy = mean_std(torch.tensor(row["unseen_accuracy"]), ".2%")
        assert f"| {name} | {row['parameters']:,} | {accuracy} |" in printed(1)


def test_commands_are_the_ones_ci_runs():
    commands = re.findall(r"```bash\n(.*?)\n```", README, re.DOTALL)
    assert len(commands) == 2
    in_ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert commands[1].replace("pip install", "pip install --quiet") in in_ci


def test_every_file_it_names_is_there():
    for name in re.findall(r"`([\w./]+\.(?:ipynb|py|txt))`", README) + re.findall(r"\]\((\.github/[^)]+)\)", README):
        assert (ROOT / name).exists(), name


def test_the_lines_for_a_python_shell_run(tmp_path, monkeypatch):
    (lines,) = re.findall(r"```python\n(.*?)\n```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(lines.replace("karras_sigmas(20)", "karras_sigmas(2)"), {})
    assert (tmp_path / "bicycles.png").read_bytes().startswith(b"\x89PNG")
