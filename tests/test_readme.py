"""README's figures are the result cards' figures, and its commands are the ones that are run."""

import re
from pathlib import Path
from statistics import mean, stdev

import pytest

from helpers.training import load_card

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def table_rows():
    """The rows of README's results table, made from the cards."""
    paper, best, diffusion = (load_card(name) for name in ("classifier_paper", "classifier_best", "diffusion"))
    paper_tests, tests = ([row["test_accuracy"] for row in card["seeds"]] for card in (paper, best))
    averaged = [row["test_accuracy_averaged"] for row in best["seeds"]]
    metrics, plain, ddpm = (load_card(name)["metrics"] for name in ("diffusion", "diffusion_plain", "diffusion_paper"))
    plain_card = load_card("diffusion_plain")
    assert metrics["n"] == plain["n"] == ddpm["n"]
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
        f"| a plain network of this size, without Neon, batches of {plain_card['settings']['batch']}: FID | | "
        f"{plain['fid']:.2f}² |",
        f"| that network, plain DDPM's recipe (our reading of the report), our solver: FID | | {ddpm['fid']:.2f}² |",
        f"| parameters (limit 1,000,000) | 948,856 | {diffusion['parameters']:,} |",
        f"| steps (limit 50,000) | 50,000 | {diffusion['steps']:,}, batch {diffusion['settings']['batch']}, "
        f"on one {diffusion['device']} in {diffusion['seconds'] / 60:.0f} min |",
        f"| notebook 2, *Training* | {diffusion['steps']:,} |",
        f"| notebook 2, *The FID* | {metrics['fid']:.2f} (n = {metrics['n']:,}) |",
    ]


def prose():
    """README's sentences that quote the classifiers' cards."""
    paper, best = (load_card(name) for name in ("classifier_paper", "classifier_best"))

    def over(card, key):
        return mean(row[key] for row in card["seeds"])

    assert {key for key, value in paper["settings"].items() if value != best["settings"][key]} == {"lr"}  # one recipe
    spreads = " and ".join(f"{over(card, 'test_accuracy_std_over_batches'):.1%}" for card in (paper, best))
    return [
        f"{paper['settings']['lr']} and {best['settings']['lr']})",
        f"spread by {spreads}",
        f"took {over(best, 'seconds') / 60:.0f} minutes",
        f"| {over(best, 'train_accuracy'):.3f} and {over(best, 'test_accuracy'):.4f} |",
        f"refuses more | {paper['parameters']:,} and {best['parameters']:,} |",
    ]


def ablation_rows():
    """The rows of README's table of the classifier's ingredients."""
    rows = load_card("classifier_best")["ingredients"]["rows"]
    return [f"| {name} | {row['parameters']:,} | {row['test_accuracy']:.2%} |" for name, row in rows.items()]


def recipe_rows():
    """The rows of README's table of the plain network by two recipes, and its sentences on sampling."""
    ddpm, plain, sweep = (load_card(f"diffusion_{name}") for name in ("paper", "plain", "sweep"))
    assert all(ddpm[key] == plain[key] for key in ("samples", "images", "steps", "parameters"))
    older = sweep["weights_sha256"] != load_card("diffusion")["sha256"]
    default = sweep["rows"][0]
    fast = [row for row in sweep["rows"] if all(row.get(key) == default.get(key) for key in ("guidance", "neon"))]
    enough = min((row["evaluations"], row["steps"]) for row in fast if row["fid"] <= 1.05 * min(r["fid"] for r in fast))
    names = {(1.0, 1.0): ", no guidance", (2.5, 0.0): ", without Neon", (2.5, 1.0): ""}
    looped = {f"the looped network{names[row['guidance'], row['neon']]}": row for row in sweep["rows"]
              if row["steps"] == 20 and (row["guidance"], row["neon"]) in names}  # fmt: skip
    assert len(looped) == 3
    rows = ddpm["rows"] | plain["rows"] | looped
    return [f"| {name} | {row['evaluations']:,} | {row['fid']:.2f} |" for name, row in rows.items()] + [
        f"{ddpm['steps']:,} steps of {ddpm['settings']['batch']}; {ddpm['samples']:,} drawings against "
        f"{ddpm['images']:,} held-out",
        f"{enough[0]} evaluations a drawing ({enough[1]} steps)",
        f"among {min(row['steps'] for row in fast)} to {max(row['steps'] for row in fast)} steps",
        *["swept with earlier weights"] * older,
    ]


def interpolation_rows():
    """The rows of README's table of ways to interpolate, and its sentences on them."""
    card = load_card("interpolation")
    columns = ("length", "largest_over_mean_step")
    rows, middles, inversion = card["smoothness"]["rows"], card["middles"], card["inversion"]
    older = card["weights_sha256"] != load_card("diffusion")["sha256"]
    more = card["smoothness"]["rows_with_more_frames"]
    frames, (report, glide) = card["settings"]["rows"], more
    fids = {name: row["fid"] for name, row in middles["rows"].items()}
    ratios = [of[glide]["length"] / of[report]["length"] for of in (rows, more)]
    growth = [more[name]["length"] / rows[name]["length"] for name in (report, glide)]
    return [
        f"| {name} | " + " | ".join(f"{row[c]:.2f} ± {row[c + '_std_over_pairs']:.2f}" for c in columns) + " |"
        for name, row in rows.items()
    ] + [
        *[f"| {name} | {row['fid']:.2f} | {row['mean_distance']:.2f} |" for name, row in middles["rows"].items()],
        f"noise loses nothing (FID {1 - fids['slerp of noise'] / fids['starting points']:.0%} lower)",
        f"costs {fids['slerp of noise and class'] / fids['starting points'] - 1:.0%}:",
        f"midpoints of {middles['images_each']:,} pairs, one a pair, against {middles['test_images']:,} test images",
        f"at guidance {card['settings']['guidance']:g})",
        f"{ratios[0]:.2f} times as long as the report's way at {frames} frames, "
        f"{ratios[1]:.2f} times at {2 * frames - 1}",
        f"the report's way grows by {growth[0] - 1:.0%} and the glide by {growth[1] - 1:.0%}",
        f"come back at {inversion['psnr']:.1f} dB ({inversion['n']} images)",
        *["measured with earlier weights"] * older,
    ]


def speed_rows():
    """The rows of README's table of speed."""

    def cells(row, digits):
        median, (least, most) = row["images_per_second"], row["least_to_most"]
        return f"{median:,.{digits}f} ({least:,.{digits}f}…{most:,.{digits}f}) | {row['peak_memory_mib']:,} |"

    cpu, gpu = (load_card(name)["rows"] for name in ("speed_cpu", "speed_cuda"))
    assert list(cpu) == list(gpu)
    return [f"| {name} | {cells(cpu[name], 1)} {cells(gpu[name], 0)}" for name in cpu]


def speed_prose():
    """The ratios that README draws from that table."""
    cards = [load_card(name) for name in ("speed_cpu", "speed_cuda")]

    def ratio(card, name, base):
        return card["rows"][name]["images_per_second"] / card["rows"][base]["images_per_second"]

    def both(name, base):
        return " and ".join(f"{ratio(card, name, base):.1f}" for card in cards) + " times"

    steps = [batch / cards[1]["rows"][f"batch {batch}, 32×32"]["images_per_second"] for batch in (16, 64, 256)]
    assert max(steps) < 1.15 * min(steps)  # README: a step takes as long whatever the batch
    eager, compiled = (cards[1]["rows"][name] for name in ("notebook loop", "notebook loop, compiled"))
    return [
        f"{both('notebook loop', 'usual loop')} the images of the usual loop",
        f"{both('notebook loop, compiled', 'usual loop')} with `COMPILE = True`",
        f"{both('notebook loop', 'notebook loop, U-Net of diffusers')} those of the library's U-Net",
        f"{both('our features', 'features by clean-fid')} the rate of clean-fid's own pipeline",
        f"{ratio(cards[1], 'notebook loop, compiled', 'notebook loop'):.1f} times as fast in "
        f"{compiled['peak_memory_mib'] / eager['peak_memory_mib']:.0%} of the memory",
        *[f"{card['device']}; batch {card['batch']}" for card in cards],
    ]


@pytest.mark.parametrize(
    "rows",
    [
        table_rows,
        prose,
        ablation_rows,
        recipe_rows,
        interpolation_rows,
        speed_rows,
        speed_prose,
    ],
)
def test_figures_are_the_cards(rows):
    for row in rows():
        assert row in " ".join(README.split("\n")), f"README lacks this, or has it with other figures:\n{row}"


def test_commands_are_the_ones_ci_runs():
    commands = re.findall(r"```bash\n(.*?)\n```", README, re.DOTALL)
    assert len(commands) == 2
    in_ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert commands[1].replace("pip install", "pip install --quiet") in in_ci


def test_every_file_it_names_is_there():
    for name in re.findall(r"`([\w./]+\.(?:ipynb|py|txt))`", README) + re.findall(r"\]\((\.github/[^)]+)\)", README):
        assert (ROOT / name).exists(), name
