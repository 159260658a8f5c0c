"""What the pages show of cards: the cards' own figures."""

import re

import pytest
import torch

from helpers import classifiers, data, reports, results


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


def test_headlines_quote_card_and_report():
    best, diffusion = results.load_card("classifier_best"), results.load_card("diffusion")
    share = sum(row["test_accuracy"] for row in best["seeds"]) / 3
    assert reports.classifier_headline(best).startswith(f"{share:.2%} of the test images right, with 83,618 parameters")
    assert "74.9%" in reports.classifier_headline(best)
    assert reports.diffusion_headline(diffusion).startswith(f"FID {diffusion['metrics']['fid']:.2f} by 10,000 samples")
    assert "91.78" in reports.diffusion_headline(diffusion)


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
    del card["metrics"]
    assert len(reports.fid_waterfall(card).axes[0].texts) == len(whole) - 1
