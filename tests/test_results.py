import copy
import hashlib
import itertools
import json
import math
import os
import platform
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from helpers import budget, classifiers, diffusion, plots, results, unet
from helpers.files import DataError
from tests.test_runs import same

CPU = torch.device("cpu")


def test_cards_hold_numbers_whatever_they_were(tmp_path):
    card = {"a": torch.tensor(0.123456789), "b": torch.tensor([1, 2]), "c": [torch.tensor([0.5, 1 / 3])], "d": "text",
            "e": {"f": np.float64(2.5), 3: (1, None)}, "g": 0.999_999, "h": True}  # fmt: skip
    saved = results.save_card("card", card, tmp_path)
    read = results.load_card("card", tmp_path)
    assert read == saved
    expected = {"name": "card", "a": 0.12346, "b": [1, 2], "c": [[0.5, 0.33333]], "d": "text",
                "e": {"f": 2.5, "3": [1, None]}, "g": 0.999_999, "h": True}  # fmt: skip
    assert read == expected


def test_weights_make_the_round_trip(tmp_path):
    net, folder = classifiers.PaperClassifier(), tmp_path / "Übung 1, データ"  # spaces and letters beyond ASCII
    saved = results.save_weights("classifier_paper", net, {"steps": 3}, folder)
    loaded = classifiers.PaperClassifier()
    assert results.load_weights("classifier_paper", loaded, folder) == saved
    assert saved["steps"] == 3
    assert not loaded.training
    assert same(net.state_dict(), loaded.state_dict())


def test_a_run_of_yours_is_newer_than_what_is_shipped(tmp_path):
    runs = str(tmp_path / "runs")
    assert results.newest(runs, "diffusion") == results.WEIGHTS
    results.save_card("diffusion", {}, runs)
    assert results.newest(runs, "diffusion") == tmp_path / "runs"
    assert results.newest(runs, "diffusion", "diffusion_plain") == results.WEIGHTS  # what belongs together stays so


def test_what_was_found_of_the_very_same_weights_is_kept(tmp_path):
    net = nn.Linear(2, 2)
    results.save_weights("net", net, {"steps": 3, "fid": 15.3}, tmp_path)
    card = results.save_weights("net", net, {"steps": 4}, tmp_path)
    assert (card["steps"], card["fid"]) == (4, 15.3)
    nn.init.zeros_(net.weight)
    assert "fid" not in results.save_weights("net", net, {"steps": 4}, tmp_path)


def test_damaged_missing_and_foreign_weights(tmp_path):
    with pytest.raises(DataError, match="train first"):
        results.load_weights("diffusion", nn.Linear(2, 2), tmp_path)
    results.save_weights("net", nn.Linear(2, 2), {}, tmp_path)
    with pytest.raises(DataError, match="of another architecture or an older version"):
        results.load_weights("net", nn.Linear(2, 3), tmp_path)
    path = tmp_path / "net.pt"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="net.pt is missing or damaged"):
        results.load_weights("net", nn.Linear(2, 2), tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="net.pt is missing or damaged"):
        results.load_weights("net", nn.Linear(2, 2), tmp_path)


def test_a_damaged_card_is_named_and_does_not_keep_a_run_from_being_saved(tmp_path):
    (tmp_path / "net.json").write_text("")
    with pytest.raises(DataError, match="net.json in .* is damaged: delete it"):
        results.load_card("net", tmp_path)
    results.save_weights("net", nn.Linear(2, 2), {"steps": 3}, tmp_path)
    assert results.load_card("net", tmp_path)["steps"] == 3


def test_a_drive_that_cannot_be_written_to_is_said(tmp_path, monkeypatch):
    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(DataError, match="Read-only file system.*choose another folder"):
        results.save_weights("net", nn.Linear(2, 2), {}, tmp_path / "drive")


def test_a_study_is_measured_now_or_taken_from_the_latest_card(tmp_path, monkeypatch, capsys):
    shipped = tmp_path / "shipped"
    monkeypatch.setattr(results, "WEIGHTS", shipped)
    results.save_card("study", {"weights_sha256": "old", "value": 1, "date": "2026-01-02"}, shipped)
    asked = []

    def measure():
        asked.append(1)
        return {"value": 2}

    def study(now, of):
        return results.measured("study", measure, now=now, runs=tmp_path / "runs", device=CPU, of=of)

    assert study(False, "old")["value"] == 1
    assert capsys.readouterr().out == ""
    assert study(False, "new")["value"] == 1
    assert "study: measured with other weights, 2026-01-02. Set MEASURE to 'yes'" in capsys.readouterr().out
    card = study(True, "new")
    assert card["value"] == 2
    assert {"weights_sha256", "device", "torch", "date"} <= card.keys()
    assert study(False, "new") == card  # yours now, before the shipped one
    assert asked == [1]


def test_a_card_measured_with_other_settings_says_which(tmp_path, capsys):
    def study(now, **settings):
        return results.measured("study", lambda: {"x": 1}, now=now, runs=tmp_path, device=CPU, settings=settings)

    assert study(True, guidance=2.5, interval=(0.05, 6.0), steps=20)["settings"]["guidance"] == 2.5
    study(False, steps=20, guidance=2.5, interval=(0.05, 6.0))
    assert capsys.readouterr().out == ""
    study(False, steps=10, guidance=1.0, interval=(0.05, 6.0))
    assert "study: measured with other steps, guidance, " in capsys.readouterr().out
    study(False, guidance=2.5, churn=0.1)  # of which the card says nothing
    assert "study: measured with other churn, " in capsys.readouterr().out


def test_a_card_says_why_it_lacks_what_it_is_asked_for(tmp_path):
    results.save_card("net", {"settings": {"batch": 3}}, tmp_path)
    card = results.load_card("net", tmp_path)
    for ask in (lambda: card["steps"], lambda: card["settings"]["network"]):
        with pytest.raises(DataError, match="a result card lacks '(steps|network)', so it is of an older version"):
            ask()


def test_weights_in_a_net_whose_code_has_changed_are_told_by_what_it_answers(tmp_path, capsys):
    def net(activation):
        return nn.Sequential(nn.Linear(3, 9), activation, nn.Linear(9, 2))

    example = (torch.linspace(-1, 1, 6).view(2, 3),)
    results.save_weights("net", net(nn.ReLU()), {}, tmp_path, example)
    results.load_weights("net", net(nn.ReLU()), tmp_path, example)
    results.load_weights("net", net(nn.GELU()), tmp_path)  # nobody asked
    assert capsys.readouterr().out == ""
    results.load_weights("net", net(nn.GELU()), tmp_path, example)
    assert "net: these weights were trained in another net" in capsys.readouterr().out


def test_a_net_in_training_mode_is_saved_as_it_is_and_known_again(tmp_path, capsys):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).train()
    net(torch.randn(9, 3))
    before, example = copy.deepcopy(net.state_dict()), (torch.randn(2, 3),)
    results.save_weights("net", net, {}, tmp_path, example)
    assert same(net.state_dict(), before)
    assert net.training
    results.load_weights("net", nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), tmp_path, example)
    assert capsys.readouterr().out == ""


def test_weights_of_another_architecture_change_nothing(tmp_path):
    results.save_weights("net", nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3)), {}, tmp_path)
    other = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 4))
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(DataError, match="of another architecture or an older version than this Sequential"):
        results.load_weights("net", other, tmp_path)
    assert same(other.state_dict(), before)


def test_a_study_that_could_not_be_kept_is_not_begun(tmp_path):
    (tmp_path / "runs").write_text("a file is in the way")
    with pytest.raises(DataError, match="could not write"):
        results.measured("study", lambda: pytest.fail("measured"), now=True, runs=tmp_path / "runs", device=CPU)


def test_curves_are_means_of_every_so_many_steps_of_each_run_without_the_seconds():
    first, second = torch.tensor([1.0, 2, 3, 4, 9]), torch.tensor([0.0, 2, 4, 6, 9])
    histories = [{"loss": of, "accuracy": of / 10, "seconds": of} for of in (first, second)]
    thinned = results.thinned(histories, points=2)
    assert list(thinned) == ["every", "loss", "accuracy"]  # in their order, which is that of the panels
    assert thinned["every"] == 2  # what is left over at the end is dropped
    assert [run.tolist() for run in thinned["loss"]] == [[1.5, 3.5], [1.0, 5.0]]
    assert torch.allclose(thinned["accuracy"], torch.tensor([[0.15, 0.35], [0.1, 0.5]]))
    assert results.thinned(histories, points=100)["every"] == 1  # of a short run all


@pytest.mark.parametrize("harm", ["copied", "edited", "retrained", "no card"])
def test_weights_that_do_not_fit_their_card_are_kept_when_others_are_saved(tmp_path, harm, capsys):
    results.save_weights("w", nn.Linear(4, 4), {"v": 1}, tmp_path)
    there = tmp_path / "w.pt"
    if harm == "copied":
        results.save_weights("other", nn.Linear(4, 4), {}, tmp_path)
        for suffix in (".pt", ".json"):
            (tmp_path / f"w{suffix}").write_bytes((tmp_path / f"other{suffix}").read_bytes())
        with pytest.raises(DataError, match=r"w.json in .* is the card of other: give its files that name again"):
            results.load_card("w", tmp_path)
    elif harm == "edited":
        (tmp_path / "w.json").write_text("{ // my best run")
    elif harm == "retrained":
        there.write_bytes(there.read_bytes() + b"more")
    else:
        (tmp_path / "w.json").unlink()
    kept, sha = there.read_bytes(), hashlib.sha256(there.read_bytes()).hexdigest()[:8]
    new = nn.Linear(4, 4)
    results.save_weights("w", new, {"v": 2}, tmp_path)
    assert (tmp_path / f"w-{sha}.pt").read_bytes() == kept
    assert f"weights that did not fit their card are kept as w-{sha}.pt" in capsys.readouterr().out
    loaded = nn.Linear(4, 4)
    assert results.load_weights("w", loaded, tmp_path)["v"] == 2
    assert same(loaded.state_dict(), new.state_dict())
    results.save_weights("w", new, {"v": 3}, tmp_path)
    assert capsys.readouterr().out == ""


def test_an_earlier_run_that_cannot_be_kept_is_not_replaced(tmp_path, monkeypatch):
    net = nn.Linear(2, 2)
    results.save_weights("w", net, {"v": 1}, tmp_path)

    def full(path, data):
        raise DataError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(results, "write_atomically", full)
        with pytest.raises(DataError, match="the disk is full"):
            results.save_weights("w", nn.Linear(2, 2), {"v": 2}, tmp_path)
    again = nn.Linear(2, 2)
    assert results.load_weights("w", again, tmp_path)["v"] == 1
    assert same(again.state_dict(), net.state_dict())


def test_a_good_pair_that_was_kept_is_not_touched_by_weights_copied_from_it(tmp_path):
    for value in (1, 2):
        results.save_weights("w", nn.Linear(2, 2), {"v": value}, tmp_path)
    (kept,) = tmp_path.glob("w-*.pt")
    card = kept.with_suffix(".json").read_bytes()
    (tmp_path / "w.pt").write_bytes(kept.read_bytes())  # beside the card of the second
    results.save_weights("w", nn.Linear(2, 2), {"v": 3}, tmp_path)
    assert kept.with_suffix(".json").read_bytes() == card
    assert results.load_weights(kept.stem, nn.Linear(2, 2), tmp_path)["v"] == 1


def test_weights_that_answer_with_nan_are_not_saved(tmp_path):
    net, example = nn.Linear(2, 2), (torch.ones(1, 2),)
    results.save_weights("net", net, {"v": 1}, tmp_path, example)
    nn.init.constant_(net.weight, float("nan"))
    with pytest.raises(DataError, match="net: the net's answer is not finite, so nothing was saved: lower LR or NEON"):
        results.save_weights("net", net, {"v": 2}, tmp_path, example)
    assert results.load_weights("net", nn.Linear(2, 2), tmp_path, example)["v"] == 1


def test_a_card_names_the_kind_of_machine_and_not_the_machine(monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "someones-laptop")
    monkeypatch.setattr(platform, "machine", lambda: "riscv")
    found = results.environment(torch.device("cpu"))
    assert found["device"].startswith("riscv cpu, ")
    assert "someones-laptop" not in str(found)


def test_one_line_says_what_run_a_card_is_of():
    card = {"parameters": 83_618, "steps": 1_000, "step_limit": 10_000, "settings": {"batch": 32}, "data": "these",
            "device": "a chip", "date": "2026-01-01"}  # fmt: skip
    said = "83,618 parameters, 1,000 of 10,000 steps, batch 32, on these: "
    assert results.summary(card) == said + "on a chip, 2026-01-01."
    assert results.summary(card | {"seconds": 6_000.0}) == said + "100 min on a chip, 2026-01-01."
    assert results.summary(card | {"seeds": [{}, {}]}) == said + "2 seed(s), on a chip, 2026-01-01."


SHIPPED = sorted(path.stem for path in results.WEIGHTS.glob("*.pt"))


def test_the_five_are_there():
    assert SHIPPED == ["classifier_best", "classifier_paper", "diffusion", "diffusion_paper", "diffusion_plain"]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_load_and_keep_within_their_budget(name, capsys):
    card = results.load_card(name)
    if name.startswith("diffusion"):
        module, example = unet.build_denoiser(card["settings"]), unet.PROBE
    else:
        module = {"paper": classifiers.PaperClassifier, "best": classifiers.DigitSumClassifier}[name[11:]]()
        example = classifiers.PROBE
    results.load_weights(name, module, example=example)
    assert capsys.readouterr().out == ""
    assert budget.count_parameters(module) == card["parameters"] <= card["parameter_limit"]
    assert 0 < card["steps"] <= card["step_limit"]
    assert {"data", "settings", "device", "torch", "date", "sha256", "answer"} <= card.keys()
    assert all(p.isfinite().all() for p in module.parameters())
    text = json.dumps(card)
    assert "/root" not in text
    assert "/home" not in text


def test_the_shipped_network_is_the_default_one():
    assert results.load_weights("diffusion", diffusion.Denoiser(unet.UNet()))["settings"]["network"] == "looped"


def test_json_that_is_no_card_of_this_name_is_refused_and_written_over(tmp_path):
    net = torch.nn.Linear(2, 1)
    for text in ("[]", "{}", '{"name": "other"}'):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(
            DataError, match="run.json .* is " + ("the card of other" if "other" in text else "damaged")
        ):
            results.load_card("run", tmp_path)
        assert results.save_weights("run", net, {"steps": 1}, tmp_path)["sha256"] == results.fingerprint(net)
    assert results.load_weights("run", net, tmp_path)["steps"] == 1
    results.save_card("study", {"x": np.arange(3)}, tmp_path)
    assert results.load_card("study", tmp_path)["x"] == [0, 1, 2]
    with pytest.raises(DataError, match="study.pt is missing or damaged"):
        results.load_weights("study", net, tmp_path)


def test_other_weights_of_the_same_name_are_kept_and_said(tmp_path, capsys):
    first, second = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    results.save_weights("net", first, {"steps": 50_000}, tmp_path)
    results.save_weights("net", first, {"more": 1}, tmp_path)  # the same: nothing to keep
    assert len([*tmp_path.glob("net*.pt")]) == 1
    results.save_weights("net", second, {"steps": 2}, tmp_path)
    kept = f"net-{results.fingerprint(first)[:8]}"
    assert f"net: the weights of an earlier run are kept as {kept}.pt and .json" in capsys.readouterr().out
    for suffix in (".pt", ".json"):  # renamed, they are as they were
        (tmp_path / f"{kept}{suffix}").rename(tmp_path / f"net{suffix}")
    third = torch.nn.Linear(1, 1)
    assert results.load_weights("net", third, tmp_path)["steps"] == 50_000
    assert same(third.state_dict(), first.state_dict())


def test_killed_at_any_moment_of_saving_every_pair_is_whole_and_the_next_run_goes_on(tmp_path, monkeypatch):
    """Six moves: the earlier weights, their card, into their place; then the new ones the same. Killed before each."""
    nets, replace = [nn.Linear(2, 2) for _ in range(4)], os.replace
    for moment, then in itertools.product(range(1, 7), ("load", "save")):
        folder, loaded, calls = tmp_path / f"{moment} {then}", nn.Linear(2, 2), []
        for run in (0, 1):
            results.save_weights("net", nets[run], {"run": run}, folder)

        def die(*where, moment=moment, calls=calls):
            calls.append(1)
            if len(calls) == moment:
                raise KeyboardInterrupt  # nothing in here catches it
            replace(*where)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", die)
            with pytest.raises(KeyboardInterrupt):
                results.save_weights("net", nets[2], {"run": 2}, folder)
        if then == "save":  # another run, before anything was loaded
            results.save_weights("net", nets[3], {"run": 3}, folder)
        pairs = sorted(path.stem for path in folder.glob("*.json"))
        kept = {}
        for name in pairs:
            kept.setdefault(results.load_weights(name, loaded, folder)["run"], name)
            assert same(loaded.state_dict(), nets[results.load_card(name, folder)["run"]].state_dict())
        reached = 2 if moment == 6 else 1
        now = 3 if then == "save" else reached
        assert kept[now] == "net"
        assert kept.keys() >= {0, now, reached}  # nothing that was finished is lost
        results.save_weights("net", nets[3], {"run": 3}, folder)
        kinds = [path.suffix for path in folder.iterdir()]
        assert kinds.count(".pt") == kinds.count(".json") == len(kinds) / 2  # nothing is left behind


def test_weights_that_another_page_loads_while_they_are_saved_are_saved(tmp_path, monkeypatch):
    net, save_card = nn.Linear(2, 2), results.save_card

    def loaded_at_once(name, card, folder):
        saved = save_card(name, card, folder)
        results.load_weights(name, nn.Linear(2, 2), folder)
        return saved

    monkeypatch.setattr(results, "save_card", loaded_at_once)
    assert results.save_weights("net", net, {"run": 1}, tmp_path)["run"] == 1
    assert results.load_weights("net", nn.Linear(2, 2), tmp_path)["run"] == 1


def test_no_half_of_a_pair_is_kept(tmp_path):
    nets = [nn.Linear(2, 2) for _ in range(2)]
    results.save_weights("net", nets[0], {"run": 0}, tmp_path)
    (tmp_path / "net.pt").unlink()
    results.save_weights("net", nets[1], {"run": 1}, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.json", "net.pt"]


def test_every_earlier_run_is_kept_and_what_was_found_of_it_comes_back_with_its_weights(tmp_path):
    nets = [nn.Linear(2, 2) for _ in range(3)]
    results.save_weights("net", nets[0], {"run": 0, "fid": 15.3}, tmp_path)
    for run in (1, 2):
        results.save_weights("net", nets[run], {"run": run}, tmp_path)
    assert len([*tmp_path.glob("net-*.pt")]) == 2
    assert results.save_weights("net", nets[0], {"run": 0}, tmp_path)["fid"] == 15.3


def test_the_folder_of_the_shipped_weights_is_not_yours_by_whatever_path(monkeypatch):
    monkeypatch.chdir(results.WEIGHTS.parent)
    for runs in ("weights", "./weights", "tests/../weights", str(results.WEIGHTS)):
        assert results.newest(runs, "diffusion") == results.WEIGHTS
    assert results.whose(results.newest("weights", "diffusion")) == "The shipped weights"


def test_a_compiled_net_is_saved_known_and_loaded_as_the_net_that_it_is(tmp_path):
    """Compiled whole, in part, or in place; and the shipped weights go into a compiled net."""
    plain = unet.build_denoiser(results.load_card("diffusion_paper")["settings"])
    results.load_weights("diffusion_paper", plain)
    in_part = copy.deepcopy(plain)
    in_part.net = torch.compile(in_part.net)
    in_place = copy.deepcopy(plain)
    in_place.compile()
    for compiled in (torch.compile(copy.deepcopy(plain)), in_part, in_place):
        assert results.fingerprint(compiled) == results.fingerprint(plain)
        results.save_weights("diffusion_paper", compiled, {"steps": 1}, tmp_path)
        loaded = copy.deepcopy(plain)
        nn.init.zeros_(loaded.net.stem.weight)
        results.load_weights("diffusion_paper", loaded, tmp_path)
        assert same(loaded.state_dict(), plain.state_dict())
        nn.init.zeros_(compiled.net.stem.weight)
        card = results.load_weights("diffusion_paper", compiled)
        assert results.fingerprint(compiled) == card["sha256"]


def test_the_same_weights_are_the_same_however_they_lie_in_memory(tmp_path):
    net = classifiers.DigitSumClassifier()
    card = results.save_weights("net", net, {"fid": 15.3}, tmp_path)
    otherwise = copy.deepcopy(net).to(memory_format=torch.channels_last)
    strided = copy.deepcopy(net)
    for parameter in strided.parameters():
        parameter.data = torch.stack([parameter.data, parameter.data], dim=-1)[..., 0]
    for of in (otherwise, strided):
        assert results.fingerprint(of) == card["sha256"]
        assert results.save_weights("net", of, {}, tmp_path)["fid"] == 15.3


def test_what_is_not_finite_is_null_in_a_card_which_stays_json(tmp_path):
    card = {
        "std": torch.tensor(math.nan),
        "row": [math.nan, {"x": np.float64("inf")}],
        "array": np.array([1.5, np.nan]),
    }
    saved = results.save_card("card", card, tmp_path)
    read = json.loads((tmp_path / "card.json").read_text(), parse_constant=pytest.fail)
    assert read == saved == {"name": "card", "std": None, "row": [None, {"x": None}], "array": [1.5, None]}
    assert plots.pm((0.5, read["std"]), ".2f") == "0.50"
    curves = {"loss": [1.0, 0.5], "seen now and then": [math.nan, math.nan]}
    results.save_card("card", {"history": curves}, tmp_path)
    plots.training_curves({"": results.load_card("card", tmp_path)["history"]})
    assert results.save_card("card", {np.int64(3): 1}, tmp_path) == {"name": "card", "3": 1}


def test_a_study_leaves_nothing_but_its_card(tmp_path):
    results.measured("study", lambda: {"x": 1}, now=True, runs=tmp_path, device=CPU)
    assert [path.name for path in tmp_path.iterdir()] == ["study.json"]


def test_a_card_takes_the_name_that_it_is_saved_by_and_whatever_it_holds(tmp_path):
    net = classifiers.PaperClassifier()
    card = results.load_weights("classifier_paper", net)
    results.save_weights("mine", net, card | {"folder": tmp_path, "at": {np.int64(3): 1.0}}, tmp_path)
    again = results.load_weights("mine", classifiers.PaperClassifier(), tmp_path)
    assert (again["name"], again["folder"], again["at"]) == ("mine", str(tmp_path), {"3": 1.0})
    about = {"n": np.int64(3), "folder": tmp_path}
    for now in (True, False):
        results.measured("study", lambda: {"x": 1}, now=now, runs=tmp_path, device=CPU, settings=about)


def test_weights_do_not_go_into_a_net_without_memory():
    with torch.device("meta"):
        net = classifiers.PaperClassifier()
    with pytest.raises(DataError, match="holds no memory yet: call module.to_empty"):
        results.load_weights("classifier_paper", net)


def test_weights_of_a_denoiser_of_another_prediction_are_refused_before_they_draw_noise():
    net = unet.build_denoiser(results.load_card("diffusion_paper")["settings"]).net
    with pytest.raises(DataError, match="a denoiser with prediction='epsilon': build one, not 'edm'"):
        results.load_weights("diffusion_paper", diffusion.Denoiser(net))
    results.load_weights("diffusion_paper", diffusion.Denoiser(net, "epsilon"))


def test_every_kind_of_number_becomes_json(tmp_path):
    kinds = [
        np.array(2.5),
        np.array(3),
        np.float32(0.5),
        np.int8(4),
        np.bool_(True),
        torch.tensor(7),
        torch.tensor(True),
    ]
    assert results.save_card("card", {"all": kinds}, tmp_path)["all"] == [2.5, 3, 0.5, 4, True, 7, True]


def test_an_answer_has_four_digits_however_small_it_is(tmp_path, capsys):
    net, x = nn.Linear(2, 2), torch.ones(3, 2)
    with torch.no_grad():
        net.weight.copy_(1e-5 * torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
        net.bias.zero_()
    card = results.save_weights("net", net, {}, tmp_path, (x,))
    out = net(x)
    assert card["answer"] == [
        pytest.approx(float(value), rel=1e-3) for value in (out.mean().detach(), out.std().detach())
    ]
    assert card["answer"][0] > 0
