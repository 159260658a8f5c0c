import re
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import settings
from helpers.settings import choice, distinct, folder, number, pair, several, whole


@pytest.mark.parametrize(
    ("rule", "kept", "refused", "said"),
    [
        (choice("yes", "no"), ["yes", "no"], ["Yes", 1], "one of 'yes', 'no'"),
        (number(), [3, -2.5, np.float64(0.5)], ["1", None, [1], True, float("nan"), float("inf")], "a number"),
        (number(1), [1, 2.5], [0.999], "a number, at least 1"),
        (number(most=2), [2, -9], [2.001], "a number, at most 2"),
        (number(0, 1_000), [0, 1_000], [-1, 1_001, float("nan")], "a number, at least 0 and at most 1,000"),
        (whole(), [3, np.int64(-3), 10**400], [3.0, np.float64(3), True, "3"], "a whole number"),
        (whole(3, 3), [3], [2, 4], "a whole number, at least 3 and at most 3"),
        (number(8, multiple=8), [8, 16], [12, 0, 8.0], "a multiple of 8, at least 8"),
        (several(number(0)), [[1, 2.5], (0,)], [3, [], "12"], "a list of one or more values"),
        (several(number(0), 3), [[1, 2, 3]], [[1, 2], (1, 2, 3, 4), 3], "a list of 3 values"),
        (distinct(several(whole())), [[3, 4]], [[3, 3]], "different values"),
        (pair(number(0)), [(0.0, 6.0), [1, 1]], [(6.0, 0.05)], r"a pair \(low, high\)"),
        (pair(number(0)), [], [3, (1, 2, 3)], "a list of 2 values"),
        (folder, ["runs", Path("runs"), "~"], [" ", "", 3, None], "the path of a folder"),
        (folder, [], ["~nosuchuser/x"], "in a home folder that is there"),
    ],
)
def test_rules_say_what_they_are(rule, kept, refused, said):
    for value in kept:
        rule("A", value)
    for value in refused:
        with pytest.raises(ValueError, match=f"^A must be {said}, got {re.escape(repr(value))}$"):
            rule("A", value)


def test_of_a_list_the_value_that_will_not_do_is_named():
    with pytest.raises(ValueError, match=r"^A\[1\] must be a number, at most 2, got 2.5$"):
        several(number(most=2))("A", [1, 2.5])
    with pytest.raises(ValueError, match=r"^A\[0\]\[1\] must be a number, at least 0, got -1$"):
        several(pair(number(0)))("A", [(0, -1)])


@pytest.mark.parametrize(
    "bad",
    [
        {"SEEDS": [3, 3]},
        {"GUIDANCE_INTERVAL": (6.0, 0.05)},
        {"SEED": 20251126123456},
        {"SAMPLE_SEEDS": [1, 1]},
    ],
)
def test_what_would_be_obeyed_in_silence_and_mean_nothing_is_refused(bad):
    with pytest.raises(ValueError, match=rf"^{next(iter(bad))}(\[\d\])* must be"):
        settings.check(bad)
    settings.check({"SEEDS": [3, 4], "GUIDANCE_INTERVAL": (0.05, 6.0), "SEED": 10**9})


@pytest.mark.parametrize(
    ("choice", "kind", "demo", "expected"),
    [("auto", "cpu", False, False), ("auto", "cpu", True, True), ("auto", "cuda", False, True),
     ("yes", "cpu", False, True), ("no", "cuda", True, False)],
)  # fmt: skip
def test_wanted(choice, kind, demo, expected):
    assert settings.wanted(choice, torch.device(kind), demo=demo) is expected
    assert settings.wanted(choice, torch.device(kind), demo=demo, after="yes") is expected
    assert settings.wanted(choice, torch.device(kind), demo=demo, after="no") is (expected and choice == "yes")


LIMITS = {  # the least and the most that is legal; None: no limit
    "SEED": (0, 10**9), "STEPS": (1, None), "BATCH": (1, None), "ABLATION_STEPS": (1, None),
    "ABLATION_BATCH": (1, None), "VIEWS": (1, None),
    "NEON_SAMPLES": (1, None), "NEON_STEPS": (0, None), "HELD_OUT": (0, 49_000),
    "LR": (0, 1), "PAPER_LR": (0, 1), "LR_DECAY": (0, 1), "LABEL_DROPOUT": (0, 1), "UNAUGMENTED": (0, 1),
    "WARMUP": (0, None), "WEIGHT_DECAY": (0, None),
    "EMA_DECAY": (0, 0.999_999), "P_STD": (0, None), "DEGREES": (0, 180), "SCALE": (0, 0.9),
    "SHEAR": (0, 60), "SHIFT": (0, 28), "BEND": (0, 28), "STROKE": (0, 1), "GUIDANCE": (0, None),
    "VIEW_JITTER": (0, 1), "SAMPLER_STEPS": (2, None), "INVERSION_STEPS": (2, None),
    "ANCESTRAL_STEPS": (7, 1_000), "SAMPLES": (4, None), "ROWS": (2, None),
    "PAIRS": (2, None), "MIDDLES": (2, 5_000),
}  # fmt: skip
LIMITS_OF_EACH = {
    "SEEDS": (0, 10**9),
    "SAMPLE_SEEDS": (0, 10**9),
}


OTHERS = {"DATA_ROOT", "RUNS", "DATA", "TRAIN", "MEASURE", "AMP", "COMPILE", "PREDICTION", "OPTIMIZER", "NETWORK",
          "WIDTHS", "GUIDANCE_INTERVAL", "P_MEAN", "NEON_WEIGHT"}  # fmt: skip
WHOLE = "SEED|STEP|BATCH|VIEWS|SAMPLES|HELD|ROWS|PAIRS|MIDDLES"


def test_the_limits_of_every_number_are_legal_and_what_lies_beyond_is_not():
    assert settings.RULES.keys() == LIMITS.keys() | LIMITS_OF_EACH.keys() | OTHERS
    for name, (least, most) in (LIMITS | LIMITS_OF_EACH).items():
        step = 1 if re.search(WHOLE, name) else 1e-7
        for legal, beyond in [(least, least - step)] + ([(most, most + step)] if most else []):
            wrapped = (lambda number: [number]) if name in LIMITS_OF_EACH else (lambda number: number)
            settings.check({name: wrapped(legal)})
            with pytest.raises(ValueError, match=rf"^{name}(\[0\])? must be"):
                settings.check({name: wrapped(beyond)})
        if step == 1:
            with pytest.raises(ValueError, match="must be a whole number"):
                settings.check({name: wrapped(least + 0.5)})


def test_choices_and_shapes():
    allowed = {
        "DATA": ("official", "rebuilt", "demo"), "TRAIN": ("auto", "yes", "no"), "MEASURE": ("auto", "yes", "no"),
        "AMP": (True, False), "COMPILE": (True, False), "PREDICTION": ("edm", "epsilon"), "OPTIMIZER": ("muon", "adam"),
        "NETWORK": ("looped", "plain"), "WIDTHS": ((8, 1_024, 16),), "P_MEAN": (-9.5, 0, 9),
        "NEON_WEIGHT": (-1, 0, 2.5), "GUIDANCE_INTERVAL": ((0, 0), (0.05, 6)),
    }  # fmt: skip
    for name, values in allowed.items():
        for value in values:
            settings.check({name: value})
        for wrong in ("other", None, [], (4, 8, 8), (8, 8, 1_032), (-1, 2)):
            with pytest.raises(ValueError, match=rf"^{name}(\[\d\])* must be"):
                settings.check({name: wrong})


def test_numbers_of_numpys_become_pythons():
    values = {"SEED": np.int64(3), "SAMPLE_SEEDS": [np.int32(1)], "LR": np.float64(0.5)}
    settings.check(values)
    assert [type(value) for value in (values["SEED"], values["SAMPLE_SEEDS"][0], values["LR"])] == [int, int, float]


def test_a_home_folder_is_a_home_folder_once_settings_are_read(monkeypatch, tmp_path):
    monkeypatch.delenv("DATA_ROOT", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    values = {"DATA_ROOT": "~/my data", "RUNS": Path("~") / "runs"}
    settings.read(values)
    assert values == {"DATA_ROOT": str(tmp_path / "my data"), "RUNS": str(tmp_path / "runs")}


def test_environment_variables_win_and_are_checked(monkeypatch):
    for name, value in (("DATA", "demo"), ("TRAIN", ""), ("DATA_ROOT", "elsewhere"), ("SEED", "5")):
        monkeypatch.setenv(name, value)
    values = {"DATA": "official", "TRAIN": "no", "SEED": 1}
    settings.read(values)
    assert values == {"DATA": "demo", "TRAIN": "no", "SEED": 1}  # an empty one counts as none; SEED is not among them
    with pytest.raises(ValueError, match="SEED must be a whole number, at least 2"):
        settings.read(values, SEED=whole(2))
    monkeypatch.setenv("DATA", "cifar")
    with pytest.raises(ValueError, match="DATA must be one of"):
        settings.read(values)
