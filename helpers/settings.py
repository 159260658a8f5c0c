"""What the settings cell of a notebook may say, checked before anything is spent on it."""

import math
import numbers
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from helpers.files import plain

Rule = Callable[[str, object], None]  # (name, value): ValueError "NAME must be …", where the value will not do


def _refuse(name: str, what: str, value: object) -> None:
    raise ValueError(f"{name} must be {what}, got {value!r}")


def _is_number(value: object, kind: type, least: float, most: float) -> bool:
    finite = isinstance(value, kind) and not isinstance(value, bool) and -math.inf < value < math.inf
    return finite and least <= value <= most


def number(least: float = -math.inf, most: float = math.inf, *, multiple: int = 0) -> Rule:
    """A finite number from `least` to `most`; a whole one, a multiple of `multiple`, where that is given."""
    kind = numbers.Integral if multiple else numbers.Real
    what = {0: "a number", 1: "a whole number"}.get(multiple, f"a multiple of {multiple}")
    limits = (f"at {word} {limit:,}" for word, limit in (("least", least), ("most", most)) if abs(limit) < math.inf)
    what = ", ".join([what, *filter(None, [" and ".join(limits)])])

    def rule(name: str, value: object) -> None:
        if not _is_number(value, kind, least, most) or (multiple and value % multiple):
            _refuse(name, what, value)

    return rule


whole = partial(number, multiple=1)


def choice(*allowed: object) -> Rule:
    """One of these values."""

    def rule(name: str, value: object) -> None:
        if value not in allowed:
            _refuse(name, f"one of {', '.join(map(repr, allowed))}", value)

    return rule


def _is_list(value: object, count: int | None) -> bool:
    return isinstance(value, list | tuple) and len(value) == (count or max(1, len(value)))


def several(of: Rule, count: int | None = None) -> Rule:
    """A list of values that keep a rule: exactly `count`, or at least one."""

    def rule(name: str, value: object) -> None:
        if not _is_list(value, count):
            _refuse(name, f"a list of {count or 'one or more'} values", value)
        for i, part in enumerate(value):
            of(f"{name}[{i}]", part)

    return rule


def distinct(of: Rule) -> Rule:
    """A list that keeps a rule, each of its values another."""

    def rule(name: str, value: object) -> None:
        of(name, value)
        if len(set(value)) < len(value):
            _refuse(name, "different values", value)

    return rule


def pair(of: Rule) -> Rule:
    """(low, high), both of which keep a rule."""

    def rule(name: str, value: object) -> None:
        several(of, 2)(name, value)
        if value[0] > value[1]:
            _refuse(name, "a pair (low, high)", value)

    return rule


def folder(name: str, value: object) -> None:
    """The path of a folder, whether it is there or not; a leading ~ must name a home that is."""
    if not isinstance(value, str | os.PathLike) or not str(value).strip():
        _refuse(name, "the path of a folder", value)
    try:
        Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{name} must be in a home folder that is there, got {value!r}") from error


COUNT, SEED, FOLDERS = whole(1), whole(0, 10**9), ("DATA_ROOT", "RUNS")
RULES = {
    **dict.fromkeys(FOLDERS, folder),
    "DATA": choice("official", "rebuilt", "demo"),
    **dict.fromkeys(("TRAIN", "MEASURE"), choice("auto", "yes", "no")),
    **dict.fromkeys(("AMP", "COMPILE"), choice(True, False)),
    "NETWORK": choice("looped", "plain"),
    "PREDICTION": choice("edm", "epsilon"),
    "OPTIMIZER": choice("muon", "adam"),
    "SEED": SEED,
    **dict.fromkeys(("SEEDS", "SAMPLE_SEEDS"), distinct(several(SEED))),
    **dict.fromkeys(("STEPS", "BATCH", "NEON_SAMPLES", "VIEWS"), COUNT),
    **dict.fromkeys(("LR", "PAPER_LR", "LR_DECAY", "LABEL_DROPOUT"), number(0, 1)),
    **dict.fromkeys(("WARMUP", "WEIGHT_DECAY", "P_STD"), number(0)),
    **dict.fromkeys(("P_MEAN", "NEON_WEIGHT"), number()),
    "EMA_DECAY": number(0, 0.999_999),
    "WIDTHS": several(number(8, 1_024, multiple=8), count=3),
    "HELD_OUT": whole(0, 49_000),
    "NEON_STEPS": whole(0),
    "DEGREES": number(0, 180),
    "SCALE": number(0, 0.9),
    "SHEAR": number(0, 60),
    **dict.fromkeys(("SHIFT", "BEND"), number(0, 28)),
    **dict.fromkeys(("STROKE", "UNAUGMENTED", "VIEW_JITTER"), number(0, 1)),
    **dict.fromkeys(("SAMPLER_STEPS", "INVERSION_STEPS"), whole(2)),
    "ANCESTRAL_STEPS": whole(7, 1_000),
    "GUIDANCE": number(0),
    "GUIDANCE_INTERVAL": pair(number(0)),
    **dict.fromkeys(("ABLATION_STEPS", "ABLATION_BATCH"), COUNT),
    "SAMPLES": whole(4),
    **dict.fromkeys(("ROWS", "PAIRS"), whole(2)),
    "MIDDLES": whole(2, 5_000),
}


def read(values: dict, **rules: Rule) -> None:
    """Make a notebook's settings, in `values` such as its `globals()`, ready for use; rules: as in `check`.

    Environment variables named DATA, DATA_ROOT and TRAIN win, all are checked, a leading ~ becomes the home folder.
    """
    for name in values.keys() & {"DATA", "DATA_ROOT", "TRAIN"}:
        values[name] = os.environ.get(name) or values[name]
    check(values, **rules)
    for name in values.keys() & {*FOLDERS}:
        values[name] = str(Path(values[name]).expanduser())


def check(values: dict, **rules: Rule) -> None:
    """Refuse settings (name -> value) that cannot be obeyed, before anything is spent on them: ValueError.

    Numbers of numpy's become Python's. rules: others than those of `RULES`, where one setting limits another.
    """
    for name, rule in (RULES | rules).items():
        if name in values:
            rule(name, values[name])
            values[name] = plain(values[name])


def wanted(wish: str, device: torch.device, *, demo: bool = False, after: str = "auto") -> bool:
    """Whether to do what takes long: "yes", not "no", and "auto" with a GPU, or on the demo data.

    after: the wish for what comes before it; who says "no" there, gets "no" for "auto".
    """
    return wish == "yes" or (wish == "auto" and after != "no" and (demo or device.type != "cpu"))
