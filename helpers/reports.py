"""Results as the pages show them: lines, tables and figures, made of result cards and nets."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch
from IPython.display import Markdown
from torch import Tensor, nn

from helpers import classifiers, data, fid, plots, results, studies
from helpers.batches import normalise
from helpers.figures import Picture
from helpers.walks import GLIDE

PLAYER = "the same game, another player"  # GitHub, w1ll-farmer/Deep-Learning


# The classifier.


def classifier_headline(card: dict, folder: str | Path) -> str:
    """What came out, in one line, beside the report; folder: where the weights are from."""
    test = mean(row["test_accuracy"] for row in card["seeds"])
    spent = f"{card['parameters']:,} parameters and {card['steps']:,} steps"
    found = f"{test:.2%} of the test images right (mean of {len(card['seeds'])} seeds)"
    return f"{results.whose(folder)}: {found}, with {spent}.\nThe report: 74.9%, with 98,740 and 10,000."


def classifier_table(cards: dict[str, dict]) -> Markdown:
    """The table of results: the report, another player of the same game, and a column for each card."""
    views = next(iter(cards.values()))["views"]
    rows = {
        "parameters": ["98,740", "86,692"],
        "steps": ["10,000", ""],
        "training accuracy, ± over batches": ["0.679 ± 0.033", ""],
        "test accuracy, ± over batches": ["0.749 ± 0.025", "0.8495"],
        "test accuracy, ± over seeds": ["", ""],
        f"the same, mean of {views} views": ["", ""],
        "minutes a run": ["", ""],
    }
    for card in cards.values():
        each = {
            key: torch.tensor([torch.nan if row[key] is None else float(row[key]) for row in card["seeds"]])
            for key in card["seeds"][0]
            if "accuracy" in key
        }
        column = [f"{card['parameters']:,}", f"{card['steps']:,}"]
        for split in ("train", "test"):
            pair = each[f"{split}_accuracy"].mean(), each[f"{split}_accuracy_std_over_batches"].mean()
            column.append(plots.pm(pair, ".3f"))
        column += [plots.mean_std(each[key], ".4f") for key in ("test_accuracy", "test_accuracy_tta")]
        column.append(f"{mean(row['seconds'] for row in card['seeds']) / 60:.0f}")
        for cells, cell in zip(rows.values(), column, strict=True):
            cells.append(cell)
    heads = ["", "the report", PLAYER, *(f"{title}, here" for title in cards)]
    return plots.table(heads, [[name, *cells] for name, cells in rows.items()])


def errors(card: dict) -> dict[str, tuple[float, float]]:
    """Title -> errors in 10,000, mean and standard deviation over seeds, of a card of `studies.variants`."""
    found = {}
    for title, row in card["rows"].items():
        wrong = 10_000 * (1 - torch.tensor(row["unseen_accuracy"], dtype=torch.float64))
        found[title] = float(wrong.mean()), float(wrong.std()) if len(wrong) > 1 else float("nan")
    return found


def ablation(card: dict) -> Picture:
    """The ingredients as bars of errors; the learned sum would dwarf them, and stands in `answers`."""
    r, shown = card["settings"], {name: pair for name, pair in errors(card).items() if name != "learned sum"}
    runs = f"{r['steps']:,} steps, batch {r['batch']}, {len(r['seeds'])} seed(s)"
    return plots.bars(shown, title=f"Errors in 10,000 images of unseen digits ({runs})", form=",.0f")


def answers(asked: dict, ablation: dict, cards: dict[str, dict]) -> Markdown:
    """The errors of nets that answer a question each, one seed, beside the page's own."""
    rows, short, full = [], errors(ablation), asked["settings"]
    few, small = ablation["settings"], full["variants"]["learned sum"]["batch"]
    for title in ("learned sum", "all ingredients"):
        said = title.replace("all ingredients", "exact sum")
        rows.append([said, f"{few['steps']:,}", few["batch"], len(few["seeds"]), f"{short[title][0]:,.0f}"])
    for title, (wrong, _) in errors(asked).items():
        batch = small if title == "learned sum" else full["batch"]
        rows.append([title, f"{full['steps']:,}", batch, len(full["seeds"]), f"{wrong:,.0f}"])
    for title, card in cards.items():
        wrong = 10_000 * (1 - card["seeds"][0]["unseen_accuracy"])
        rows.append([title, f"{card['steps']:,}", card["settings"]["batch"], 1, f"{wrong:,.0f}"])
    return plots.table(["", "steps", "batch", "seeds", "errors in 10,000 images of unseen digits"], rows)


def misread(net: classifiers.DigitSumClassifier, most: int = 36) -> Picture:
    """Which of MNIST's test digits the reader of a net misreads; prints how many, and the commonest confusions."""
    images, names = data.digits("", "test")
    read = classifiers.predict(net.reader, images[:, None]).argmax(dim=1)
    wrong = (read != names).nonzero()[:, 0]
    print(f"{1 - len(wrong) / len(images):.2%} of {len(images):,} digits are read as labelled.")
    commonest = (10 * names[wrong] + read[wrong]).bincount(minlength=100).topk(5)
    pairs = zip(commonest.indices.tolist(), commonest.values.tolist(), strict=True)
    print("Most often:", ", ".join(f"{pair // 10} read as {pair % 10} ({n})" for pair, n in pairs if n))
    shown = wrong[:most]
    captions = [f"is {names[i]}, read {read[i]}" for i in shown]
    title = f"{f'{most} of' if len(wrong) > most else 'all'} {len(wrong)} misread digits"
    return plots.image_grid(images[shown, None].expand(-1, 3, -1, -1), 9, captions=captions, title=title)


def sure_and_wrong(
    net: classifiers.DigitSumClassifier, images: Tensor, labels: Tensor, count: int = 6
) -> Picture | None:
    """The wrong answers of which a net is surest, taken apart; prints how many are wrong, and with a misread digit."""
    chances, (pool, names) = classifiers.predict(net, images).exp(), data.digits("", "test")
    wrong = (chances.argmax(dim=1) != labels).nonzero()[:, 0]
    misread = pool[classifiers.predict(net.reader, pool[:, None]).argmax(dim=1) != names]
    known = {digit.tobytes() for digit in misread.numpy()}
    shown = [{digit.tobytes() for digit in image} & known for image in images[wrong].numpy()]
    blamed, behind = sum(map(bool, shown)), len(set().union(*shown))
    by = f"{behind} misread digits cause {blamed} of them"
    print(f"{len(wrong)} of {len(images):,} answers are wrong; {by}.")
    print(f"On average the net is {chances.amax(dim=1).mean():.2%} sure, and {1 - len(wrong) / len(images):.2%} right.")
    if not len(wrong):
        return None
    surest = wrong[chances[wrong].amax(dim=1).argsort(descending=True, stable=True)[:count]]
    with torch.no_grad():
        read = net.digit_log_probabilities(normalise(images[surest])).argmax(dim=2).tolist()
    pairs = zip(surest, read, strict=True)
    titles = [f"read {' + '.join(map(str, digits))},\nthe sum is {labels[i] + 1}" for i, digits in pairs]
    return plots.addnist_examples(images[surest], titles, "sure, and wrong")


# The diffusion model.


def diffusion_headline(card: dict, folder: str | Path) -> str:
    """What came out, in one line, beside the report; folder: where the weights are from."""
    spent = f"{card['parameters']:,} parameters and {card['steps']:,} steps"
    found = "FID {fid:.2f} from {n:,} samples".format(**card["metrics"]) if "metrics" in card else "no FID yet"
    return f"{results.whose(folder)}: {found}, with {spent}.\nThe report: 91.78, with 948,856 and 50,000."


def fid_line(metrics: dict) -> str:
    """A card's FID, how sure it is, and how it was measured."""
    by_seed = ", ".join(f"{found:.2f}" for found in metrics["fid_by_seed"])
    found = "FID {fid:.2f}, KID {kid:.2f} · 10⁻³, precision {precision:.3f}, recall {recall:.3f}"
    how = "{protocol}; {sampler}, {denoiser_evaluations} evaluations a sample"
    return f"{found}\nFID by seed of the noise: {by_seed}\n{how}".format(**metrics)


def fid_waterfall(card: dict) -> Picture:
    """From the report's FID to that of a card, in full runs; dashed, what others have published, and real images."""
    found = {
        "plain U-Net, report's recipe": results.load_card("diffusion_paper"),
        "plain U-Net: EDM, Muon, guidance": results.load_card("diffusion_plain"),
        f"{card['settings']['network']} U-Net{', Neon' if 'neon' in card['settings'] else ''}": card,
    }
    others = {
        f"DCGAN, 967,072 parameters: {PLAYER}": 44.46,
        "StyleGAN2, 20 million, without labels": 18.44,
        "StyleGAN2 with DiffAugment, likewise": 16.80,
        "BigGAN, 4.6 million, with labels, by an older FID": 12.87,
        "CR-BigGAN with DiffAugment, likewise": 11.25,
    }
    steps = {name: of["metrics"]["fid"] for name, of in found.items() if "metrics" in of}
    if "fid_of_training_images" in card.get("metrics", {}):
        others["real images, those of the training set"] = card["metrics"]["fid_of_training_images"]
    return plots.waterfall({"the report": 91.78} | steps, others, title="FID on CIFAR-100, lower is better")


def samplers() -> Markdown:
    """The plain U-Net, by either recipe and several samplers: differences of FIDs of few samples."""
    cards = [results.load_card(name) for name in ("diffusion_paper", "diffusion_plain")]
    rows = {name.replace("paper", "report's"): row for card in cards for name, row in card["rows"].items()}
    first = next(iter(rows.values()))["fid"]
    cells = [[name, f"{row['evaluations']:,}", f"{row['fid'] - first:+.2f}"] for name, row in rows.items()]
    cells[0][2] = "0"
    return plots.table([f"plain U-Net, {cards[0]['samples']:,} samples", "evaluations", "FID, difference"], cells)


def sweep_table(card: dict) -> Markdown:
    """What other settings would change: differences from the first row."""
    ours, cells = card["rows"][0], []
    forms = {"fid": "+.2f", "kid": "+.2f", "precision": "+.3f", "recall": "+.3f"}
    said = {"steps": "{} steps", "guidance": "guidance {}", "interval": "guidance for σ in {0[0]:g}…{0[1]:g}"}
    said |= {"neon": "Neon's weight {:g}"}
    for row in card["rows"]:
        changed = [form.format(row[key]) for key, form in said.items() if row is ours or row[key] != ours[key]]
        less = ["0" if row is ours else f"{row[key] - ours[key]:{form}}" for key, form in forms.items()]
        cells.append([("ours: " if row is ours else "") + ", ".join(changed), row["evaluations"], *less])
    heads = [f"{card['samples']:,} samples, {card['images']:,} held-out images", "evaluations"]
    return plots.table([*heads, "Δ FID", "Δ KID · 10³", "Δ precision", "Δ recall"], cells)


def speed_table() -> Markdown:
    """How fast the training loop is on a GPU, as it stands and compiled, and what memory it takes."""
    card = results.load_card("speed_cuda")
    rows = [
        [name, f"{row['images_per_second']:,.0f}", f"{row['peak_memory_mib']:,}"]
        for name, row in card["rows"].items()
        if "notebook loop" in name
    ]
    title = f"plain U-Nets, {card['device']}, batches of {card['batch']}"
    return plots.table([title, "images/s", "peak memory, MiB"], rows)


# Between samples.


def growth(found: dict) -> dict[str, tuple[list, list]]:
    """Way -> (numbers of frames, lengths in lengths at the fewest), of what `walks.smoothness` found."""
    curves = {}
    for name, row in found["rows"].items():
        lengths = {int(count): mean for count, (mean, _) in row["length"].items()}
        curves[name] = [*lengths], [length / lengths[min(lengths)] for length in lengths.values()]
    return curves


def loss_by_noise(denoiser: nn.Module, root: str | Path | None) -> Picture | None:
    """The loss of a denoiser by noise level, on training and on test images of CIFAR-100; without a root, a line."""
    if not root:
        return print("This curve needs CIFAR-100, which the demo does without.")
    sets = {split: data.cifar100(root, split) for split in ("train", "test")}
    curves = studies.loss_by_level(denoiser, sets, count=100)
    return plots.lines(curves, x="noise level σ", y="loss", log_x=True, title="Loss by noise")


def nearest_photographs(samples: Tensor, root: str | Path | None, device: torch.device) -> Picture | None:
    """Samples uint8 (N, 3, 32, 32) above the three training images nearest to each; without a root, a line."""
    if not root:
        return print("This comparison needs CIFAR-100, which the demo does without.")
    images = data.cifar100(root, "train")[0].to(device)
    nearest = images[fid.nearest(samples.to(device), images, 3)].cpu()  # (N, 3, 3, 32, 32)
    page = torch.cat([samples[:, None], nearest], dim=1).transpose(0, 1).flatten(0, 1)
    return plots.image_grid(page, len(samples), row_titles=["sample", "nearest", "second", "third"])


def round_trip(figures: dict) -> str:
    """One line on images that went up to their noise and down again, from what `walks.there_and_back` measures."""
    return (
        "{n} test images, there and back: PSNR {psnr:.1f} ± {psnr_std_over_images:.1f} dB (± over images), "
        "{denoiser_evaluations_there_and_back} evaluations"
    ).format(**figures)


def growth_curves(found: dict, names: Sequence[str]) -> Picture:
    """How much longer these ways get with more frames."""
    curves = growth(found)
    shown = {name.replace("; ", ",\n"): curves[name] for name in names}
    title = f"{found['pairs']} random pairs: fresh noise jumps at every frame"
    return plots.lines(shown, x="frames", y=f"length / length at {curves[GLIDE][0][0]} frames", title=title)


def smoothness_table(found: dict) -> Markdown:
    """Each way's length with most frames, its growth from the fewest, and its evenness; ± over pairs."""
    curves, rows = growth(found), []
    few, many = curves[GLIDE][0][0], curves[GLIDE][0][-1]
    for name, row in found["rows"].items():
        whole = len(curves[name][0]) > 1  # not the one timed anew, which is measured at the fewest frames
        length = plots.pm(row["length"].get(str(many)), ".0f")
        grown = f"{curves[name][1][-1]:.1f} times" if whole else ""
        rows.append([name, length, grown, plots.pm(row["unevenness"], ".2f")])
    heads = [f"{found['pairs']} random pairs", f"length, {many} frames", f"growth from {few} frames"]
    return plots.table([*heads, "largest / mean step"], rows)


def middles_table(found: dict) -> Markdown:
    """How far midpoints are from test images, beyond what their starting points are."""
    (_, start), *others = found["rows"].items()
    rows = [["starting points", "0", "0"]]
    for name, row in others:
        rows.append([name, *(f"{row[key] - start[key]:+.1f}" for key in ("fid", "mean_distance"))])
    heads = [f"{found['images_each']:,} midpoints each, {found['test_images']:,} test images"]
    return plots.table([*heads, "FID, difference", "distance of means, difference"], rows)
