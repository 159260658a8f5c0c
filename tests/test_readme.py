"""The figures of README and of the notebooks' prose are the result cards'; README's commands are the ones that run."""

import json
import re
from collections import Counter
from itertools import chain
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch

from helpers.plots import mean_std
from helpers.results import load_card

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def prose(notebook):
    """The markdown of a notebook as one line of text."""
    cells = json.loads(next(ROOT.glob(f"0{notebook}*.ipynb")).read_text(encoding="utf-8"))["cells"]
    return " ".join(" ".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown").split())


def printed(notebook):
    """What the stored run of a notebook printed, tables too, as one line of text."""
    cells = json.loads(next(ROOT.glob(f"0{notebook}*.ipynb")).read_text(encoding="utf-8"))["cells"]
    outputs = (output for c in cells for output in c.get("outputs", []))
    texts = ("".join(output.get("text", output.get("data", {}).get("text/markdown", ""))) + " " for output in outputs)
    return " ".join(" ".join(texts).split())


def over(card, key):
    return [row[key] for row in card["seeds"]]


def readme():
    """The rows and sentences of README that quote cards."""
    paper, best, diffusion = (load_card(name) for name in ("classifier_paper", "classifier_best", "diffusion"))
    plain, ddpm = (load_card(name) for name in ("diffusion_plain", "diffusion_paper"))
    paper_tests, tests = (over(card, "test_accuracy") for card in (paper, best))
    batches = {split: f"{mean(over(best, f'{split}_accuracy')):.3f} ± "
                      f"{mean(over(best, f'{split}_accuracy_std_over_batches')):.3f}"
               for split in ("train", "test")}  # fmt: skip
    averaged, metrics = over(best, "test_accuracy_averaged"), diffusion["metrics"]
    assert metrics["n"] == plain["metrics"]["n"] == ddpm["metrics"]["n"] == 10_000
    assert {key for key, value in paper["settings"].items() if value != best["settings"][key]} == {"lr"}  # one recipe
    for card in (paper, best):  # "six runs, three of each net, on two CPU cores"; "a quarter as strongly"; "together"
        assert (len(card["seeds"]), card["device"], card["look_jitter"]) == (3, "x86_64 cpu, 2 threads", 0.25)
        assert (card["settings"]["images"], card["protocol"][:26]) == (45_000 + 15_000, "trained on train and valid")
    return [
        f"| AddNIST, the report's net: test accuracy | 74.9% | {mean(paper_tests):.1%} ± {stdev(paper_tests):.1%}¹ "
        f"({len(paper_tests)} seeds) |",
        f"| AddNIST, a net that adds, same recipe: test accuracy | | **{mean(tests):.2%} ± {stdev(tests):.2%}**¹ "
        f"({len(tests)} seeds) |",
        f"| the same, {best['looks']} looks at each image averaged | | {mean(averaged):.2%} ± {stdev(averaged):.2%}¹ |",
        f"| parameters (limit 100,000) | 98,740 | {paper['parameters']:,} and {best['parameters']:,} |",
        f"| steps (limit 10,000) | 10,000 | {paper['steps']:,} and {best['steps']:,}, "
        f"batches of {best['settings']['batch']} |",
        f"| CIFAR-100, class-conditional diffusion: FID | 91.78 | **{metrics['fid']:.2f}**² (n = {metrics['n']:,}) |",
        f"| a plain network of this size, without Neon, batches of {plain['settings']['batch']}: FID | | "
        f"{plain['metrics']['fid']:.2f}² |",
        f"| that network, bare DDPM (our reading of the report), our solver: FID | | {ddpm['metrics']['fid']:.2f}² |",
        f"| parameters (limit 1,000,000) | 948,856 | {diffusion['parameters']:,} |",
        f"| steps (limit 50,000) | 50,000 | {diffusion['steps']:,}, batch {diffusion['settings']['batch']}, "
        f"on one {diffusion['device']} in {diffusion['seconds'] / 60:.0f} min, Neon's drawings on top |",
        f"drawings, seed {metrics['seeds'][0]}, against",
        "both train on AddNIST's training and validation images together",
        "The looks are jittered a quarter as strongly as in training",
        "six runs, three of each net, on two CPU cores",
        f"with seed {metrics['seeds'][1]} it is {metrics['fid_by_seed'][1]:.2f}",
        f"({paper['settings']['lr']} and {best['settings']['lr']})",
        f"| {batches['train']} and {batches['test']} over batches; test {mean(tests):.4f} ± {stdev(tests):.4f} over ",
        f"refuses more | {paper['parameters']:,} and {best['parameters']:,} |",
        f"means of {best['history']['every']} and {diffusion['history']['every']} steps",
        f"| notebook 2, *Training* | {diffusion['steps']:,} |",
        f"| notebook 2, *The FID* | {metrics['fid']:.2f} (n = {metrics['n']:,}) |",
    ]


def notebook_1():
    paper, best = (load_card(name) for name in ("classifier_paper", "classifier_best"))
    ingredients = load_card("classifier_ingredients")
    assert len(ingredients["settings"]["seeds"]) == 3
    errors = {name: [1 - right for right in row["unseen_accuracy"]] for name, row in ingredients["rows"].items()}
    mistakes, full = {name: mean(of) for name, of in errors.items()}, errors["all of them"]
    assert 1.8 < mistakes["separate readers"] / mean(full) < 2  # "nearly twice"
    assert all(sum(map(float.__gt__, errors[worse], full)) == 3 for worse in ("no jitter", "constant learning rate"))
    assert abs(mistakes["no EMA"] - mean(full)) < stdev(full)
    shown = printed(1)
    for name, row in ingredients["rows"].items():
        accuracy = mean_std(torch.tensor(row["unseen_accuracy"]), ".2%")
        assert f"| {name} | {row['parameters']:,} | {accuracy} |" in shown
    learned = load_card("classifier_learned_sum")
    assert learned["settings"]["batch"] == best["settings"]["batch"] / 3
    assert (learned["settings"]["steps"], learned["settings"]["seeds"]) == (best["steps"], [0])
    (learned,) = learned["rows"]["learned sum, all steps"]["unseen_accuracy"]
    gains = [mean(over(card, "test_accuracy_averaged")) - mean(over(card, "test_accuracy")) for card in (paper, best)]
    assert 0.01 < gains[0] < 0.015  # "more than a point"
    assert abs(gains[1]) < stdev(over(best, "test_accuracy"))  # "nothing that three seeds could show"
    totals = over(best, "test_accuracy_by_totals")
    apart = sorted(a - b for a, b in zip(totals, over(best, "test_accuracy"), strict=True))
    assert apart[1] < 0 < apart[2] < 0.000_11  # "below with two of the three seeds, an image above with the third"
    misread = over(best, "misread_digits")
    voted = sum(seeds > len(misread) / 2 for seeds in Counter(chain.from_iterable(misread)).values())
    paired = [b - a for a, b in zip(*(load_card("classifier_precision")["rows"][n]["unseen_accuracy"]
                                      for n in ("float32", "bfloat16")), strict=True)]  # fmt: skip
    tests, paper_tests = (mean(over(card, "test_accuracy")) for card in (best, paper))
    coarse = {name: row["unseen_accuracy"] for name, row in load_card("classifier_precision")["rows"].items()}
    wrong = [1 - card["seeds"][0]["test_accuracy"] for card in (paper, best)]
    speed = load_card("speed_cuda")["rows"]
    eager, compiled = speed["notebook loop"], speed["notebook loop, compiled"]
    assert compiled["peak_memory_mib"] < eager["peak_memory_mib"] / 2
    wrong_answers = round(10_000 * wrong[1])
    blamed = rf"{wrong_answers} wrong, (\d+) by one misread digit; (\d+) digits to blame"
    by_one, digits = re.search(blamed, shown).groups()
    assert wrong_answers - int(by_one) == 2  # "the other two"
    steps = [mean(of[i] for of in paper["history"]["accuracy"]) for i in (89, 90)]  # before and after nine tenths
    return [
        f"reads **{tests:.2%}** of the test images rightly, with {best['parameters']:,} parameters",
        f"by our recipe, comes to {paper_tests:.1%}",
        "(mean of three seeds, on AddNIST rebuilt from MNIST, trained on its training and validation images)",
        f"Averaging {best['looks']} looks gives the report's net more than a point; to the net that adds, nothing that",
        "there are nearly twice as many errors, without batch norm",
        f"is at {1 - mistakes['learned sum']:.0%} after so few steps, and at {learned:.1%} after all of them",
        f"without batch norm {mistakes['no batch norm'] / mean(full):.1f} times as many",
        "{:.0f} errors in 10,000 become {:.0f} without jitter and {:.0f} at a constant learning rate".format(
            *(10_000 * mistakes[name] for name in ("all of them", "no jitter", "constant learning rate"))
        ),
        f"{best['parameters']:,} parameters read {tests:.2%} of the test images rightly, and "
        f"{mean(over(best, 'unseen_accuracy')):.1%} of those of unseen digits",
        f"reads {learned:.1%} (one seed, batches a third",
        f"bfloat16 is {100 * paired[0]:.1f} and {100 * paired[1]:.1f} points above and {-100 * paired[2]:.1f} below",
        f"every seed's net misreads: on MNIST {len(set.intersection(*map(set, misread)))} of its {len(misread[0])}.",
        f"one net misreads {mean(map(len, misread)):.0f} digits, as a mean, and {voted} are misread by two or more",
        f"goes from {steps[0]:.2f} to {steps[1]:.2f}",
        f"they would be at {mean(totals):.2%}, below with two of the three seeds",
        f"a run took {mean(over(best, 'seconds')) / 60:.0f} minutes, of the report's net "
        f"{paper['seeds'][0]['seconds'] / 60:.0f}, its first.)",
        f"on rebuilt AddNIST, {digits} digits account for {by_one} of {wrong_answers} wrong answers (first seed)",
        " and ".join(f"{mean(of):.1%} ± {stdev(of):.1%} in {name}".replace("%", "", 1) for name, of in coarse.items()),
        f"which read {best['seeds'][0]['test_accuracy']:.1%} and, the report's, "
        f"{paper['seeds'][0]['test_accuracy']:.1%} of",
        "errs fourteen times as often (fifteen times, as a mean over the seeds)"
        if (round(wrong[0] / wrong[1]), round((1 - paper_tests) / (1 - tests))) == (14, 15)
        else "?",
        f"was {compiled['images_per_second'] / eager['images_per_second']:.1f} times as fast and needed less than half",
    ]


def notebook_2():
    card, sweep, plain = (load_card(f"diffusion{name}") for name in ("", "_sweep", "_plain"))
    r, metrics, rows = card["settings"], card["metrics"], {}
    by_interval = {tuple(row["interval"]): row for row in sweep["rows"] if tuple(row["interval"]) != (0.05, 6.0)}
    for row in sweep["rows"]:
        if row not in by_interval.values():
            rows[row["steps"], row["guidance"], row["neon"]] = row
    default, more = rows[20, 2.5, 1.0], rows[30, 2.5, 1.0]
    everywhere, above = by_interval[0.0, 80.0], by_interval[0.3, 6.0]
    assert max(abs(row["fid"] - default["fid"]) for row in (everywhere, above)) < 1
    fewer, unguided, without = rows[10, 2.5, 1.0], rows[20, 1.0, 1.0], rows[20, 2.5, 0.0]
    assert sweep["weights_sha256"] == card["sha256"]
    assert fewer["fid"] < 1.05 * default["fid"]
    assert 1.8 < fewer["kid"] / default["kid"] < 2
    assert default["fid"] < without["fid"]
    assert default["kid"] < without["kid"]
    assert default["recall"] > without["recall"]
    assert default["precision"] < without["precision"]
    assert {*[*sweep["superclasses"]][-2:]} == {"people", "food containers"}
    for better in ("trees", "non-insect invertebrates", "vehicles 1"):
        (a, spread_a), (b, spread_b) = sweep["superclasses"]["people"], sweep["superclasses"][better]
        assert a - spread_a > b + spread_b
    own = r["neon"]["steps"] * r["batch"]
    return [
        f"FID **{metrics['fid']:.2f}**, with {card['parameters']:,} parameters",
        f"and {card['steps']:,} steps of {r['batch']} images",
        "seven minutes on one H100" if round(card["seconds"] / 60) == 7 and "H100" in card["device"] else "?",
        f"ours needs {metrics['denoiser_evaluations']}, or {fewer['evaluations']} at some loss",
        f"cost {fewer['fid'] - default['fid']:.2f} points and nearly double KID",
        f"{more['evaluations']} evaluations, gain {default['fid'] - more['fid']:.2f}",
        f"costs variety (recall {everywhere['recall']:.3f}) and {everywhere['evaluations']} evaluations",
        f"gives a little variety (recall {above['recall']:.3f}) for precision ({above['precision']:.3f})",
        f"and precision fell ({without['precision']:.3f} to {default['precision']:.3f})",
        f"reads {default['fid'] - rows[20, 3.0, 1.0]['fid']:.1f} lower here and covers less (recall "
        f"{rows[20, 3.0, 1.0]['recall']:.3f})",
        f"({plain['rows']['our recipe, no guidance']['fid']:.2f} to {plain['rows']['our recipe']['fid']:.2f})",
        f"reaches {load_card('diffusion_paper')['metrics']['fid']:.2f} with us",
        f"and guidance {plain['metrics']['fid']:.2f}. Blocks",
        f"together bring it to {metrics['fid']:.2f}",
        f"(precision {unguided['precision']:.3f}, against {default['precision']:.3f} with it)",
        f"(recall {unguided['recall']:.3f}, against {default['recall']:.3f})",
        f"(2.5, against {3.25}), and batches of {r['batch']} against {plain['settings']['batch']}",
        f"after {r['steps']:,} steps, is at {without['fid']:.2f}, at a guidance that was chosen together with Neon's "
        f"weight; the plain one, at its own, is at {plain['rows']['our recipe']['fid']:.2f}",
        f"It saw {r['steps'] * r['batch'] / 1e6:.1f} million training images, and {own / 1e6:.1f} million of its own",
    ]


def notebook_3():
    card = load_card("interpolation")
    back = card["inversion"]
    classes = torch.load(ROOT / "weights" / "diffusion.pt")["net.class_embedding.weight"][:100]
    norms, pairs = classes.norm(dim=1), torch.combinations(torch.arange(100))  # (100,), (4950, 2)
    shorter = 1 - (classes[pairs].mean(dim=1).norm(dim=1) / norms[pairs].mean(dim=1)).mean()
    assert card["weights_sha256"] == load_card("diffusion")["sha256"]
    rows, middles = card["smoothness"]["rows"], {name: row["fid"] for name, row in card["middles"]["rows"].items()}
    length = {name: {int(count): mean for count, (mean, _) in row["length"].items()} for name, row in rows.items()}
    switched = length["deterministic, noise slerp; class switches"]
    fresh = [length[f"DDPM, fresh noise; class {way}"] for way in ("switches", "slerp")]
    shared, glide = length["DDPM, shared noise; class slerp"], length["deterministic, noise slerp; class slerp"]
    each = {way: rows[f"deterministic, noise {way}"]["each"] for way in ("slerp; class slerp", "lerp; class slerp",
                                                                         "slerp; class lerp")}  # fmt: skip
    _, by_noise, by_class = (
        [a - b for a, b in zip(of, each["slerp; class slerp"], strict=True)] for of in each.values()
    )
    assert len(by_noise) == 12
    assert {f"{of[37] / of[10]:.1f}" for of in fresh} == {"4.0"}
    assert all(shared[count] < glide[count] for count in (10, 19, 37))  # deterministic is not what shortens a path
    uneven = {name: row["unevenness"][0] for name, row in rows.items()}
    start, far = middles["starting points"], {name: of["mean_distance"] for name, of in card["middles"]["rows"].items()}
    return [
        f"path 4.0 times as long ({card['smoothness']['pairs']} random pairs)",
        f"they make it {glide[37] / glide[10]:.1f} times as long",
        f"theirs run from {norms.min():.1f} to {norms.max():.1f}; slerp",
        f"coming out about {shorter:.0%} shorter",
        f"class embedding about as much ({shorter:.0%})",
        f"({back['psnr']:.1f} ± {back['psnr_std_over_images']:.1f} dB on {back['n']} images",
        f"grows by the same factor, {shared[37] / shared[10]:.1f}",
        f"({uneven['DDPM, shared noise; class switches']:.1f} times the mean step), and less where the noise moves as "
        f"well ({uneven['deterministic, noise slerp; class switches']:.1f} times, against the glide's "
        f"{uneven['deterministic, noise slerp; class slerp']:.1f})",
        f"largest step is {uneven['DDPM, shared noise; class switches']:.1f} times the mean",
        f"step is {uneven['deterministic, noise slerp; class switches']:.1f} times the mean, and the path",
        f"({switched[37]:.1f} against {glide[37]:.1f} at 37",
        f"by {glide[19] / glide[10] - 1:.0%} from 10 to 19, by {glide[37] / glide[19] - 1:.0%} from 19 to 37",
        f"longer than the sphere by {mean(by_noise):.1f} ± {stdev(by_noise):.1f}, the one through the class shorter by "
        f"{-mean(by_class):.1f} ± {stdev(by_class):.1f}: twelve pairs",
        f"from {uneven['deterministic, noise slerp; class slerp']:.2f} to "
        f"{uneven['deterministic, noise slerp; class slerp; re-timed']:.2f}",
        f"(FID {middles['slerp of noise']:.1f}, against {start:.1f} of the starting points)",
        f"it loses much ({middles['lerp of noise']:.1f})",
        f"costs {middles['slerp of noise and class'] - middles['slerp of noise']:.0f} points, and takes the distance "
        f"of means from {far['slerp of noise']:.1f} to {far['slerp of noise and class']:.1f}; moving it on a "
        f"straight line costs {middles['slerp of noise, lerp of class'] - middles['slerp of noise']:.0f}, and both on "
        f"straight lines is worst of all ({max(middles.values()):.1f})",
    ]


@pytest.mark.parametrize(
    ("text", "claims"),
    [(README, readme), (prose(1), notebook_1), (prose(2), notebook_2), (prose(3), notebook_3)],
    ids=["README", "1", "2", "3"],
)
def test_figures_are_the_cards(text, claims):
    text = " ".join(text.split())
    for claim in claims():
        assert claim in text, f"this is missing, or stands there with other figures:\n{claim}"


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
