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
        "J": float("inf"),
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
        ({"J": (0, None)}, "J must be a number, at least 0, got inf"),
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
    assert settings.wanted(choice, torch.device(kind), demo=demo, after="yes") is expected
    assert settings.wanted(choice, torch.device(kind), demo=demo, after="no") is (expected and choice == "yes")


LIMITS = {  # the least and the most that is legal; None: no limit
    "SEED": (0, 10**9), "STEPS": (1, None), "BATCH": (1, None), "SAVE_EVERY": (1, None), "STEP_LIMIT": (1, None),
    "PARAMETER_LIMIT": (1, None), "ABLATION_STEPS": (1, None), "ABLATION_BATCH": (1, None), "LOOKS": (1, None),
    "PRECISION_STEPS": (1, None), "NEON_SAMPLES": (1, None), "NEON_STEPS": (0, None), "HELD_OUT": (0, 49_000),
    "LR": (0, 1), "PAPER_LR": (0, 1), "LR_DECAY": (0, 1), "LABEL_DROPOUT": (0, 1), "CALM": (0, 1), "WARMUP": (0, None),
    "WEIGHT_DECAY": (0, None), "EMA_DECAY": (0, 0.999_999), "P_STD": (0, None), "DEGREES": (0, 180), "SCALE": (0, 0.9),
    "SHEAR": (0, 60), "SHIFT": (0, 28), "BEND": (0, 28), "STROKE": (0, 1), "GUIDANCE": (0, None),
    "LOOK_JITTER": (0, 1), "SAMPLER_STEPS": (2, None), "INVERSION_STEPS": (2, None),
    "ANCESTRAL_STEPS": (1, 1_000), "SAMPLES": (4, None), "SWEEP_SAMPLES": (4, None), "ROWS": (2, None),
    "PAIRS": (2, None), "MIDDLES": (2, 5_000),
}  # fmt: skip
LIMITS_OF_EACH = {
    "SEEDS": (0, 10**9),
    "SAMPLE_SEEDS": (0, 10**9),
    "SWEEP_STEPS": (2, None),
    "SWEEP_GUIDANCE": (0, None),
}


def test_the_limits_of_every_number_are_legal_and_what_lies_beyond_is_not():
    pairs = {"WIDTHS", "GUIDANCE_INTERVAL", "SWEEP_INTERVALS", "P_MEAN", "NEON_WEIGHT"}  # of other kinds, tested above
    numbers = {name for name, rule in settings.RULES.items() if rule is not str and not isinstance(rule[0], str | bool)}
    assert numbers == LIMITS.keys() | LIMITS_OF_EACH.keys() | pairs
    for name, (least, most) in (LIMITS | LIMITS_OF_EACH).items():
        rule = settings.RULES[name][0] if name in LIMITS_OF_EACH else settings.RULES[name]
        step = 1 if int in rule else 1e-7
        for legal, beyond in [(least, least - step)] + ([(most, most + step)] if most else []):
            wrapped = (lambda number: [number]) if name in LIMITS_OF_EACH else (lambda number: number)
            settings.check({name: wrapped(legal)})
            with pytest.raises(ValueError, match=f"^{name} must be"):
                settings.check({name: wrapped(beyond)})


def test_numbers_of_numpys_become_pythons():
    values = {"SEED": np.int64(3), "SAMPLE_SEEDS": [np.int32(1)], "LR": np.float64(0.5)}
    settings.check(values)
    assert [type(value) for value in (values["SEED"], values["SAMPLE_SEEDS"][0], values["LR"])] == [int, int, float]


def test_multiples_and_homes_that_are_not_there():
    with pytest.raises(ValueError, match="WIDTHS must be a multiple of 8, at least 8 and at most 1,024, got 12"):
        settings.check({"WIDTHS": (12, 16, 16)})
    with pytest.raises(ValueError, match="RUNS names a home folder that is not there"):
        settings.check({"RUNS": "~nosuchuser/x"})


def test_environment_variables_win_and_are_checked(monkeypatch):
    for name, value in (("DATA", "demo"), ("TRAIN", ""), ("DATA_ROOT", "elsewhere"), ("SEED", "5")):
        monkeypatch.setenv(name, value)
    values = {"DATA": "official", "TRAIN": "no", "SEED": 1}
    settings.read(values)
    assert values == {"DATA": "demo", "TRAIN": "no", "SEED": 1}  # an empty one counts as none; SEED is not among them
    with pytest.raises(ValueError, match="SEED must be a whole number, at least 2"):
        settings.read(values, SEED=(2, None, int))
    monkeypatch.setenv("DATA", "cifar")
    with pytest.raises(ValueError, match="DATA must be one of"):
        settings.read(values)


def test_a_cap_lowers_and_never_raises_a_setting():
    values = {"STEPS": 500, "BATCH": 8, "SEED": 3}
    settings.cap(values, STEPS=100, BATCH=32)
    assert values == {"STEPS": 100, "BATCH": 8, "SEED": 3}
