"""What the settings cell of a notebook may say, checked before anything is spent on it."""

from __future__ import annotations

import math
import numbers
import os

import torch

from helpers.files import expanded, plain

COUNT = (1, None, int)
# What each setting may be: str for a folder; a list of choices; (least, most) for a number, either of them None where
# there is no limit, with int for a whole one, and of what it must be a multiple; a list of one such rule for a list of
# such, of several for as many.
RULES = {
    "DATA_ROOT": str, "RUNS": str,
    "DATA": ["official", "rebuilt", "demo"], "TRAIN": ["auto", "yes", "no"], "MEASURE": ["auto", "yes", "no"],
    "AMP": [True, False], "COMPILE": [True, False], "PREDICTION": ["edm", "epsilon"], "OPTIMIZER": ["muon", "adam"],
    "NETWORK": ["looped", "plain"],
    "SEED": (0, 10**9, int), "SEEDS": [(0, 10**9, int)], "PARAMETER_LIMIT": COUNT, "STEP_LIMIT": COUNT, "STEPS": COUNT,
    "BATCH": COUNT, "SAVE_EVERY": COUNT, "LR": (0, 1), "WARMUP": (0, None), "LR_DECAY": (0, 1),
    "WEIGHT_DECAY": (0, None), "EMA_DECAY": (0, 0.999_999), "LABEL_DROPOUT": (0, 1),
    "P_MEAN": (None, None), "P_STD": (0, None),
    "DEGREES": (0, 180), "SCALE": (0, 0.9), "SHEAR": (0, 60), "SHIFT": (0, 28), "BEND": (0, 28), "STROKE": (0, 1),
    "CALM": (0, 1), "LOOKS": COUNT, "LOOK_JITTER": (0, 1),
    "PAPER_LR": (0, 1), "ABLATION_STEPS": COUNT, "ABLATION_BATCH": COUNT, "PRECISION_STEPS": COUNT,
    "WIDTHS": [(8, 1_024, int, 8)] * 3,
    "HELD_OUT": (0, 49_000, int), "NEON_STEPS": (0, None, int), "NEON_SAMPLES": COUNT, "NEON_WEIGHT": (None, None),
    "SAMPLER_STEPS": (2, None, int), "ANCESTRAL_STEPS": (1, 1_000, int), "INVERSION_STEPS": (2, None, int),
    "GUIDANCE": (0, None), "GUIDANCE_INTERVAL": [(0, None)] * 2,
    "SAMPLES": (4, None, int), "SAMPLE_SEEDS": [(0, 10**9, int)],
    "SWEEP_SAMPLES": (4, None, int), "SWEEP_STEPS": [(2, None, int)],
    "SWEEP_GUIDANCE": [(0, None)], "SWEEP_INTERVALS": [[(0, None)] * 2],
    "ROWS": (2, None, int), "PAIRS": (2, None, int), "MIDDLES": (2, 5_000, int),
}  # fmt: skip


def read(values: dict, **rules: list | tuple | type) -> None:
    """Overwrite DATA, DATA_ROOT and TRAIN by environment variables of these names, where set; then `check` all."""
    for name in values.keys() & {"DATA", "DATA_ROOT", "TRAIN"}:
        values[name] = os.environ.get(name) or values[name]
    check(values, **rules)


def cap(values: dict, **most: float) -> None:
    """Cap each of these settings at the number given: for a demo, which must be short."""
    for name, limit in most.items():
        values[name] = min(values[name], limit)


def check(values: dict, **rules: list | tuple | type) -> None:
    """Refuse settings that cannot be obeyed, in one sentence, before anything is spent on them: ValueError.

    values: name -> value, such as a notebook's `globals()`; what stands in `RULES` is checked, and numbers of numpy's
    become Python's. rules: others for these names, where one setting limits another.
    """
    for name, rule in (RULES | rules).items():
        if name in values:
            _check(name, values[name], rule)
            values[name] = plain(values[name])


def _check(name: str, value, rule: list | tuple | type) -> None:
    if rule is str:
        if not isinstance(value, str | os.PathLike) or not str(value).strip():
            raise ValueError(f"{name} must be the path of a folder, got {value!r}")
        try:
            expanded(value)
        except RuntimeError as error:
            raise ValueError(f"{name} names a home folder that is not there: {value!r}") from error
    elif isinstance(rule, tuple):
        _check_number(name, value, *rule)
    elif not isinstance(rule[0], list | tuple):
        if value not in rule:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, rule))}, got {value!r}")
    elif not isinstance(value, list | tuple) or not value or len(value) != len(rule) > 1:
        numbers_or_pairs = "pairs" if isinstance(rule[0], list) else "numbers"
        count = f"{len(rule)} numbers" if len(rule) > 1 else f"{numbers_or_pairs}, at least one"
        raise ValueError(f"{name} must be a list of {count}, got {value!r}")
    else:
        for part in value:
            _check(name, part, rule[0])
        if name.endswith("SEEDS") and len(set(value)) < len(value):
            raise ValueError(f"{name} must be different numbers, got {value!r}")
        if "INTERVAL" in name and len(rule) == 2 and value[0] > value[1]:
            raise ValueError(f"{name} must be (low, high), got {value!r}")


def _check_number(
    name: str, number, least: float | None, most: float | None, kind: type = float, multiple: int = 1
) -> None:
    is_number = isinstance(number, numbers.Integral if kind is int else numbers.Real) and not isinstance(number, bool)
    if is_number and (least is None or number >= least) and (most is None or number <= most) and math.isfinite(number):
        if kind is float or number % multiple == 0:
            return
    limits = ((word, limit) for word, limit in (("least", least), ("most", most)) if limit is not None)
    allowed = " and".join(f" at {word} {limit:,}" for word, limit in limits)
    what = ("a whole number" if multiple == 1 else f"a multiple of {multiple}") if kind is int else "a number"
    raise ValueError(f"{name} must be {what}{',' * bool(allowed)}{allowed}, got {number!r}")


def wanted(choice: str, device: torch.device, *, demo: bool = False, after: str = "auto") -> bool:
    """Whether to do what takes long: "yes", not "no", and "auto" with a GPU, or on the demo data.

    after: the choice of what comes before it; who says "no" there, gets "no" for "auto".
    """
    return choice == "yes" or (choice == "auto" and after != "no" and (demo or device.type != "cpu"))
