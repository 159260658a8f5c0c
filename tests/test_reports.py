"""What the pages show of cards: the cards' own figures."""

import re

import pytest
import torch

from helpers import classifiers, data, reports, results, studies, walks


def test_errors_are_counts_of_ten_thousand():
    card = {"rows": {"a": {"unseen_accuracy": [0.97, 0.99]}, "b": {"unseen_accuracy": [0.5]}}}
    found = reports.errors(card)
    assert found["a"] == (pytest.approx(200), pytest.approx(20_000**0.5))
    assert found["b"][0] == pytest.approx(5_000)
    assert found["b"][1] != found["b"][1]


def test_the_table_of_results_is_the_cards():
    cards = {name: results.load_card(f"classifier_{name}") for name in ("paper", "best")}
    rows = {row.split(" | ")[0].strip("| "): row for row in reports.classifier_table(cards).data.splitlines()}
    for column, card in enumerate(cards.values(), start=3):
        tests = torch.tensor([row["test_accuracy"] for row in card["seeds"]])
        cell = [part.strip() for part in rows["test accuracy, ± over seeds"].strip("|").split("|")][column]
        assert cell == f"{tests.mean():.4f} ± {tests.std():.4f}"
        assert f"{card['parameters']:,}" in rows["parameters"]
    assert "86,692" in rows["parameters"]
    assert "0.749 ± 0.025" in rows["test accuracy, ± over batches"]


def test_headlines_quote_card_and_report_and_say_whose_the_weights_are():
    best, diffusion = results.load_card("classifier_best"), results.load_card("diffusion")
    share = sum(row["test_accuracy"] for row in best["seeds"]) / 3
    said = reports.classifier_headline(best, results.WEIGHTS)
    assert said.startswith(
        f"The shipped weights: {share:.2%} of the test images right (mean of 3 seeds), with 83,618 parameters"
    )
    assert "74.9%" in said
    said = reports.diffusion_headline(diffusion, "runs")
    assert said.startswith(f"Your own weights, in runs: FID {diffusion['metrics']['fid']:.2f} from 10,000 samples")
    assert "91.78" in said


def test_misread_digits_are_those_of_the_card(capsys):
    net = classifiers.DigitSumClassifier()
    card = results.load_weights("classifier_best", net)
    wrong = card["seeds"][0]["misread_digits"]
    figure = reports.misread(net, most=9)
    said = capsys.readouterr().out
    assert f"{1 - len(wrong) / 10_000:.2%} of 10,000 digits" in said
    images, labels = data.digits("", "test")
    for axis, i in zip(figure.axes, wrong, strict=False):
        assert axis.images[0].get_array()[:, :, 0].tolist() == images[i].tolist()
        assert axis.get_xlabel().replace("\n", " ").startswith(f"is {labels[i]}, read ")
    assert sum(map(int, re.findall(r"\((\d+)\)", said))) <= len(wrong)


def test_sure_and_wrong_are_wrong_and_the_surest_comes_first(capsys):
    net = classifiers.DigitSumClassifier()
    results.load_weights("classifier_best", net)
    images, labels = (part[:2_000] for part in data.addnist("", "test", "rebuilt"))
    chances = classifiers.predict(net, images).exp()
    wrong = (chances.argmax(dim=1) != labels).nonzero()[:, 0]
    figure = reports.sure_and_wrong(net, images, labels, count=3)
    said = capsys.readouterr().out
    sure, right = chances.amax(dim=1).mean(), 1 - len(wrong) / 2_000
    assert f"On average the net is {sure:.2%} sure, and {right:.2%} right." in said
    assert said.startswith(f"{len(wrong)} of 2,000 answers are wrong")
    surest = wrong[chances[wrong].amax(dim=1).argmax()]
    assert figure.axes[0].images[0].get_array().tolist() == images[surest].permute(1, 2, 0).tolist()
    assert figure.axes[0].get_title().endswith(f"is {labels[surest] + 1}")


def test_studies_are_shown_as_differences():
    card = results.load_card("diffusion_sweep")
    lines = reports.sweep_table(card).data.splitlines()
    assert lines[2].split(" | ")[2:] == ["0", "0", "0", "0 |"]
    ten = next(line for line in lines if line.startswith("| 10 steps"))
    rows = {row["steps"]: row for row in card["rows"] if row["guidance"] == 2.5 and row["neon"] == 1}
    assert f"{rows[10]['fid'] - card['rows'][0]['fid']:+.2f}" in ten
    found = results.load_card("interpolation")["middles"]
    table = reports.middles_table(found).data
    less = found["rows"]["lerp of noise"]["fid"] - found["rows"]["starting points"]["fid"]
    assert f"| lerp of noise | {less:+.1f} |" in table
    assert "| report's recipe, DDPM's sampler | 1,000 | 0 |" in reports.samplers().data


def test_growth_is_relative_to_the_fewest_frames():
    found = {"rows": {"a": {"length": {"10": [50.0, 1], "37": [200.0, 1]}}}}
    assert reports.growth(found) == {"a": ([10, 37], [1.0, 4.0])}


def test_the_waterfall_leaves_out_what_has_no_fid():
    card = results.load_card("diffusion")
    whole = [text.get_text().strip() for text in reports.fid_waterfall(card).axes[0].texts]
    assert whole[:4] == ["91.78", "44.47", "17.43", f"{card['metrics']['fid']:.2f}"]
    card["metrics"].pop("fid_of_training_images", None)
    few = reports.fid_waterfall(card).axes[0].texts
    del card["metrics"]
    assert len(reports.fid_waterfall(card).axes[0].texts) == len(few) - 1
    card["metrics"] = {"fid": 15.0, "fid_of_training_images": 6.25}
    scale = reports.fid_waterfall(card).axes[0].texts[-1]
    assert scale.get_text().startswith("6.25  real images")
    assert scale.get_position()[0] == pytest.approx(6.25, abs=1)
    card["metrics"], card["settings"] = {"fid": 300.0}, {"network": "plain"}
    worse = reports.fid_waterfall(card).axes[0]
    assert worse.get_yticklabels()[3].get_text() == "plain U-Net"
    assert worse.texts[3].get_position()[0] == 300


def heads(table):
    return [head.strip() for head in table.data.splitlines()[0].strip("|").split("|")]


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.data.splitlines()[2:]]


def test_every_cell_of_the_table_of_results_from_a_card_of_distinct_values():
    def row(start):
        keys = ["train_accuracy", "train_accuracy_std_over_batches", "test_accuracy", "test_accuracy_std_over_batches",
                "test_accuracy_tta", "unseen_accuracy"]  # fmt: skip
        return {key: start + i / 100 for i, key in enumerate(keys)} | {"seconds": 120.0, "train_loss": 9.0}

    card = {"parameters": 7, "steps": 8, "views": 5, "seeds": [row(0.1), row(0.3)]}
    column = [line[3] for line in cells(reports.classifier_table({"net": card}))]
    assert column == ["7", "8", "0.200 ± 0.210", "0.220 ± 0.230", "0.2200 ± 0.1414", "0.2400 ± 0.1414", "2"]


def test_every_cell_of_the_answers():
    def study(steps, batch, seeds, **unseen):
        rows = {name.replace("_", " "): {"unseen_accuracy": [value] * seeds} for name, value in unseen.items()}
        variants = {"learned sum": {"batch": 6}}
        settings = {"steps": steps, "batch": batch, "seeds": [*range(seeds)], "variants": variants}
        return {"rows": rows, "settings": settings}

    short = study(40, 4, 3, all_ingredients=0.99, learned_sum=0.9)
    asked = study(1_000, 9, 1, learned_sum=0.95, told=0.98)
    own = {"steps": 500, "settings": {"batch": 3}, "seeds": [{"unseen_accuracy": 0.97, "test_accuracy": 0.5}]}
    assert cells(reports.answers(asked, short, {"own": own})) == [
        ["learned sum", "40", "4", "3", "1,000"], ["exact sum", "40", "4", "3", "100"],
        ["learned sum", "1,000", "6", "1", "500"], ["told", "1,000", "9", "1", "200"],
        ["own", "500", "3", "1", "300"],
    ]  # fmt: skip


def test_every_cell_of_the_tables_between_samples_and_of_the_samplers(monkeypatch):
    lengths = {"10": [50.0, 1.0], "19": [60.0, 2.0], "37": [100.0, 3.0]}
    rows = {walks.GLIDE: {"length": lengths, "each": [1.0], "unevenness": [1.5, 0.25]},
            "re-timed": {"length": {"10": [50.0, 1.0]}, "each": [1.0], "unevenness": [1.25, 0.5]}}  # fmt: skip
    found = cells(reports.smoothness_table({"pairs": 3, "rows": rows}))
    assert found == [[walks.GLIDE, "100 ± 3", "2.0 times", "1.50 ± 0.25"], ["re-timed", "", "", "1.25 ± 0.50"]]
    middles = {"starting points": {"fid": 80.0, "mean_distance": 1.0}, "a": {"fid": 95.0, "mean_distance": 4.0}}
    found = cells(reports.middles_table({"images_each": 5, "test_images": 6, "rows": middles}))
    assert found == [["starting points", "0", "0"], ["a", "+15.0", "+3.0"]]
    card = {"samples": 4, "rows": {"paper x": {"fid": 80.0, "evaluations": 1}, "y": {"fid": 70.0, "evaluations": 2}}}
    monkeypatch.setattr(results, "load_card", lambda name: card)
    assert cells(reports.samplers()) == [["report's x", "1", "0"], ["y", "2", "-10.00"]]


def test_the_curves_of_growth_say_over_how_many_pairs_they_are():
    lengths = {"10": [50.0, 1.0], "37": [100.0, 3.0]}
    found = {"pairs": 7, "rows": {walks.GLIDE: {"length": lengths, "each": [1.0], "unevenness": [1.5, 0.25]}}}
    figure = reports.growth_curves(found, [walks.GLIDE])
    assert figure.axes[0].get_title(loc="left").startswith("7 random pairs")
    assert figure.axes[0].get_ylabel() == "length / length at 10 frames"
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[10.0, 1.0], [37.0, 2.0]]


def test_the_heads_of_tables_stand_above_their_own_figures():
    cards = {name: results.load_card(f"classifier_{name}") for name in ("paper", "best")}
    answers = [results.load_card(f"classifier_{name}") for name in ("questions", "ingredients")]
    found, swept = results.load_card("interpolation"), results.load_card("diffusion_sweep")
    pairs, middles, speed = found["smoothness"]["pairs"], found["middles"], results.load_card("speed_cuda")
    run = f"plain U-Nets, {speed['device']}, batches of {speed['batch']}"
    shown = {
        reports.classifier_table(cards): ", the report, the same game, another player, paper, here, best, here",
        reports.answers(*answers, cards): ", steps, batch, seeds, errors in 10,000 images of unseen digits",
        reports.samplers(): "plain U-Net, 1,000 samples, evaluations, FID, difference",
        reports.sweep_table(swept): f"{swept['samples']:,} samples, {swept['images']:,} held-out images, evaluations, "
        "Δ FID, Δ KID · 10³, Δ precision, Δ recall",
        reports.speed_table(): f"{run}, images/s, peak memory, MiB",
        reports.smoothness_table(found["smoothness"]): f"{pairs} random pairs, length, 37 frames, "
        "growth from 10 frames, largest / mean step",
        reports.middles_table(middles): f"{middles['images_each']:,} midpoints each, {middles['test_images']:,} "
        "test images, FID, difference, distance of means, difference",
    }
    for table, said in shown.items():
        assert ", ".join(heads(table)) == said
    loop = speed["rows"]["notebook loop"]
    figures = [f"{loop['images_per_second']:,.0f}", f"{loop['peak_memory_mib']:,}"]
    assert cells(reports.speed_table())[0] == ["notebook loop", *figures]


def test_the_line_of_a_fid():
    metrics = {"fid": 15.3, "kid": 1.95, "precision": 0.679, "recall": 0.448, "fid_by_seed": [15.3, 15.31],
               "protocol": "p", "sampler": "s", "denoiser_evaluations": 28}  # fmt: skip
    assert reports.fid_line(metrics) == (
        "FID 15.30, KID 1.95 · 10⁻³, precision 0.679, recall 0.448\nFID by seed of the noise: 15.30, 15.31\n"
        "p; s, 28 evaluations a sample"
    )


def _always(digit):
    """A net that reads every digit as this one, for sure."""
    net = classifiers.DigitSumClassifier().eval()
    with torch.no_grad():
        net.reader[-1].weight.zero_()
        net.reader[-1].bias.copy_(20.0 * torch.nn.functional.one_hot(torch.tensor(digit), 10))
    return net


def test_confusions_and_blame_are_counted(monkeypatch, capsys):
    pool = torch.arange(4, dtype=torch.uint8)[:, None, None].expand(4, 28, 28), torch.tensor([3, 3, 5, 5])
    monkeypatch.setattr(data, "digits", lambda root, split: pool)
    figure = reports.misread(_always(3))
    said = capsys.readouterr().out
    assert "50.00% of 4 digits are read as labelled" in said
    assert "Most often: 5 read as 3 (2)" in said
    assert [axis.get_xlabel().replace("\n", " ") for axis in figure.axes[:2]] == ["is 5, read 3"] * 2
    images = pool[0][torch.tensor([[0, 0, 1], [0, 1, 2], [2, 2, 0], [0, 0, 0]])]
    labels = torch.tensor([8, 10, 12, 1])  # sums of 9, 11, 13; and one that is wrong though no digit is misread
    reports.sure_and_wrong(_always(3), images, labels)
    assert "3 of 4 answers are wrong; 1 misread digits cause 2 of them." in capsys.readouterr().out
    assert reports.sure_and_wrong(_always(3), images[:1], labels[:1]) is None


def test_the_loss_by_noise_is_drawn_over_a_logarithmic_axis_or_a_line_says_why_not(monkeypatch, capsys):
    curve = torch.tensor([0.1, 1.0]), torch.tensor([2.0, 1.0])
    monkeypatch.setattr(data, "cifar100", lambda root, split: (root, split))
    monkeypatch.setattr(
        studies, "loss_by_level", lambda net, sets, count: {f"{key} {of[0]}": curve for key, of in sets.items()}
    )
    axis = reports.loss_by_noise("net", "root").axes[0]
    assert axis.get_xscale() == "log"
    assert [line.get_label() for line in axis.lines] == ["train root", "test root"]
    assert reports.loss_by_noise("net", None) is None
    assert reports.nearest_photographs("samples", None, "cpu") is None
    assert capsys.readouterr().out.count("needs CIFAR-100") == 2


def test_the_nearest_photographs_stand_below_their_samples(monkeypatch):
    images = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(20, 3, 32, 32).contiguous() * 12
    monkeypatch.setattr(data, "cifar100", lambda root, split: {"train": (images, None)}[split])
    figure = reports.nearest_photographs(images[[3, 9]], "root", torch.device("cpu"))
    shown = [int(axis.images[0].get_array()[0, 0, 0]) // 12 for axis in figure.axes]
    assert shown[:4] == [3, 9, 3, 9]
    assert [set(shown[i::2][2:]) for i in (0, 1)] == [{2, 4}, {8, 10}]


def test_the_report_stands_under_its_own_heading():
    table = reports.classifier_table({"net": results.load_card("classifier_best")}).data.splitlines()
    heads = [cell.strip() for cell in table[0].strip("|").split("|")]
    rows = {
        row[0]: dict(zip(heads, row, strict=True))
        for row in cells(reports.classifier_table({"net": results.load_card("classifier_best")}))
    }
    assert rows["parameters"]["the report"] == "98,740"
    assert rows["parameters"][reports.PLAYER] == "86,692"
    assert rows["test accuracy, ± over batches"]["the report"] == "0.749 ± 0.025"
