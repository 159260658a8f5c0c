import numpy as np
import pytest
import torch

from helpers import settings


def test_check():
    values = {
        "A": "yes",
        "B": 3,
        "C": [1, 2.5],
        "D": np.float64(0.5),
        "E": (0.0, 6.0),
        "F": [],
        "G": float("nan"),
        "H": True,
        "I": " ",
    }
    settings.check(values, A=["yes", "no"], B=(3, 3, int), C=[(1, None)], D=(0, 1), E=[(0, None)] * 2)
    for rules, said in [
        ({"A": ["no"]}, "A must be one of 'no', got 'yes'"),
        ({"A": (0, 1)}, "A must be a number, at least 0 and at most 1, got 'yes'"),
        ({"B": (4, None)}, "B must be a number, at least 4, got 3"),
        ({"C": [(None, 2)]}, "C must be a number, at most 2, got 2.5"),
        ({"C": [(None, None, int)]}, "C must be a whole number, got 2.5"),
        ({"C": (0, 9)}, r"C must be a number, at least 0 and at most 9, got \[1, 2.5\]"),
        ({"B": [(0, 9)]}, "B must be a list of numbers, at least one, got 3"),
        ({"E": [(0, None)] * 3}, r"E must be a list of 3 numbers, got \(0.0, 6.0\)"),
        ({"F": [(0, None)]}, r"F must be a list of numbers, at least one, got \[\]"),
        ({"G": (None, None)}, "G must be a number, got nan"),
        ({"G": (0, 1)}, "G must be a number, at least 0 and at most 1, got nan"),
        ({"H": (0, 1)}, "H must be a number, at least 0 and at most 1, got True"),
        ({"I": str}, "I must be the path of a folder, got ' '"),
        ({"B": str}, "B must be the path of a folder, got 3"),
        ({"D": (0, 1, int)}, "D must be a whole number, at least 0 and at most 1, got .*0.5.*"),
    ]:
        with pytest.raises(ValueError, match=f"^{said}$"):
            settings.check(values, **rules)


@pytest.mark.parametrize(
    "bad",
    [
        {"SEEDS": [3, 3]},
        {"GUIDANCE_INTERVAL": (6.0, 0.05)},
        {"SEED": 20251126123456},
        {"SAMPLE_SEEDS": [1, 1]},
        {"SWEEP_INTERVALS": (0.05, 6.0)},
        {"SWEEP_INTERVALS": [(0.0, 6.0), (6.0, 0.05)]},
        {"SWEEP_INTERVALS": []},
    ],
)
def test_what_would_be_obeyed_in_silence_and_mean_nothing_is_refused(bad):
    with pytest.raises(ValueError, match=f"^{next(iter(bad))} must be"):
        settings.check(bad)
    settings.check({"SEEDS": [3, 4], "GUIDANCE_INTERVAL": (0.05, 6.0), "SEED": 10**9, "SWEEP_INTERVALS": [[0, 6]]})


@pytest.mark.parametrize(
    ("choice", "kind", "demo", "expected"),
    [("auto", "cpu", False, False), ("auto", "cpu", True, True), ("auto", "cuda", False, True),
     ("yes", "cpu", False, True), ("no", "cuda", True, False)],
)  # fmt: skip
def test_wanted(choice, kind, demo, expected):
    assert settings.wanted(choice, torch.device(kind), demo=demo) is expected


def test_numbers_of_numpys_become_pythons():
    values = {"SEED": np.int64(3), "SAMPLE_SEEDS": [np.int32(1)], "LR": np.float64(0.5)}
    settings.check(values)
    assert [type(value) for value in (values["SEED"], values["SAMPLE_SEEDS"][0], values["LR"])] == [int, int, float]


def test_multiples_and_homes_that_are_not_there():
    with pytest.raises(ValueError, match="WIDTHS must be a multiple of 8, at least 8 and at most 1,024, got 12"):
        settings.check({"WIDTHS": (12, 16, 16)})
    with pytest.raises(ValueError, match="RUNS names a home folder that is not there"):
        settings.check({"RUNS": "~nosuchuser/x"})
