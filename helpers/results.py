"""Result cards and trained weights: where every published figure comes from. Knows no net: the page builds it."""

import copy
import datetime
import hashlib
import io
import json
import math
import platform
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from helpers.files import DataError, load_tensors, verified, write_atomically
from helpers.training import load_uncompiled_state, uncompiled, uncompiled_state

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"  # what the bundle ships


def environment(device: torch.device) -> dict:
    """The versions, device and date that a result card records."""
    chip = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} {device.type}"
    count, today = torch.get_num_threads(), datetime.datetime.now(datetime.timezone.utc).date()
    threads = f", {count} thread{'s' if count > 1 else ''}" if device.type == "cpu" else ""
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    return {"device": chip + threads, **versions, "date": today.isoformat()}


class Card(dict):
    """A result card, or a part of one; asked for what it does not hold, it says why that may be: DataError."""

    def __missing__(self, key: str):
        advice = "move the run's .json and .pt away (a study's has no .pt; MEASURE = 'yes' measures it again)"
        raise DataError(f"a result card lacks {key!r}, so it is of an older version: {advice}.")


def newest(runs: str | Path, *names: str) -> Path:
    """The folder to read these cards from: `runs` where runs of yours have left all of them, else what is shipped."""
    there = all(Path(runs, f"{name}.json").exists() for name in names) and Path(runs).resolve() != WEIGHTS
    return Path(runs) if there else WEIGHTS


def whose(folder: str | Path) -> str:
    """Whose weights `newest` has found, for a line of text."""
    return "The shipped weights" if Path(folder) == WEIGHTS else f"Your own weights, in {folder}"


def _for_json(value):
    """What JSON can hold in place of what it cannot: lists for tensors, their numbers of five digits, null for NaN."""
    if isinstance(value, dict):
        return {key.item() if isinstance(key, np.generic) else key: _for_json(of) for key, of in value.items()}
    if isinstance(value, list | tuple) or (isinstance(value, Tensor | np.ndarray) and value.ndim):
        return [_for_json(of) for of in value]
    number = value.item() if isinstance(value, Tensor | np.generic | np.ndarray) else value
    if not isinstance(number, float):
        return number
    if not math.isfinite(number):
        return None
    return float(f"{number:.5g}") if isinstance(value, Tensor) else number


def save_card(name: str, card: dict, folder: str | Path) -> dict:
    """Write the result card folder/name.json, tensors as numbers of five digits, what is not finite as null.

    Returns it as it will be read.
    """
    text = json.dumps(_for_json({**card, "name": name}), indent=1, allow_nan=False, default=str) + "\n"
    write_atomically(Path(folder) / f"{name}.json", text.encode())
    return json.loads(text)


def load_card(name: str, folder: str | Path = WEIGHTS) -> dict:
    """The result card of a run. Raises DataError where there is none."""
    path = Path(folder) / f"{name}.json"
    if not path.exists():
        raise DataError(f"there is no {path.name} in {path.parent.name}/: train first, or restore it with git.")
    try:
        card = json.loads(path.read_text(), object_hook=Card)
        if not isinstance(of := card.get("name"), str):
            raise ValueError("a card has a name")
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path.name} in {path.parent.name}/ is damaged: delete it, or restore it with git.") from error
    if _run(of) != _run(name):
        raise DataError(f"{path.name} in {path.parent.name}/ is the card of {of}: give its files that name again.")
    return card


def _run(name: str) -> str:
    """NAME of NAME-a1b2c3d4, as which earlier weights are kept."""
    return re.sub("-[0-9a-f]{8}$", "", name)


def _serialised(module: nn.Module) -> bytes:
    """The same bytes for the same weights, whether the module is compiled or not and however they lie in memory."""
    buffer, state = io.BytesIO(), uncompiled_state(module)
    torch.save(
        {key: of.detach().cpu().clone(memory_format=torch.contiguous_format) for key, of in state.items()}, buffer
    )
    return buffer.getvalue()


def fingerprint(module: nn.Module) -> str:
    """The SHA-256 of a module's weights, as `save_weights` writes them."""
    return hashlib.sha256(_serialised(module)).hexdigest()


def _answer(module: nn.Module, example: tuple[Tensor, ...]) -> list[float]:
    """Mean and standard deviation of what a module, in eval mode, makes of an example: by these it is known again."""
    module, where = uncompiled(copy.deepcopy(module)).eval(), next(module.parameters()).device
    with torch.no_grad():
        out = module(*(part.to(where) for part in example)).float()
    return [float(f"{value:.4g}") for value in (out.mean().item(), out.std().item())]


def _keep_what_does_not_fit(name: str, folder: str | Path, sha256: str) -> None:
    """Keep weights whose card is missing, damaged or of others, which `save_weights` is about to replace."""
    path = Path(folder) / f"{name}.pt"
    there = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else sha256
    kept = path.with_name(f"{name}-{there[:8]}.pt")
    if there != sha256 and not kept.exists():
        with suppress(OSError):  # who cannot move it cannot replace it
            path.replace(kept)
            print(f"{name}: weights that did not fit their card are kept as {kept.name}.")


def save_weights(
    name: str, module: nn.Module, card: dict, folder: str | Path, example: tuple[Tensor, ...] = ()
) -> dict:
    """Write the weights folder/name.pt and their result card folder/name.json; return the card.

    name: of both files.
    module: whose state is written.
    card: what to say of it; the weights' SHA-256 is added. What an earlier card of the very same weights says beyond
        this one, such as a FID, is kept. Other weights that are there are kept, too, as NAME-a1b2c3d4, the first
        digits of their SHA-256, even where their card is damaged.
    folder: where to; made, if it is not there.
    example: arguments of the module, whose answer is noted, so that `load_weights` knows whether it is the same net.
    Raises DataError where the folder cannot be written to, or where that answer is not finite.
    """
    data = _serialised(module)
    card = {**card, "sha256": hashlib.sha256(data).hexdigest()}
    if example:
        card["answer"] = _answer(module, example)
        if not all(map(math.isfinite, card["answer"])):
            raise DataError(f"{name}: the net's answer is not finite, so nothing was saved: lower LR or NEON_WEIGHT.")
    for same in (name, f"{name}-{card['sha256'][:8]}"):
        with suppress(DataError):
            before = load_card(same, folder)
            card = before | card if before.get("sha256") == card["sha256"] else card
    try:
        before = load_card(name, folder)
        there = _weights(name, folder, before["sha256"])
    except DataError:
        _keep_what_does_not_fit(name, folder, card["sha256"])
    else:
        if before["sha256"] != card["sha256"]:
            earlier = f"{name}-{before['sha256'][:8]}"
            _save_pair(earlier, there, before, folder)
            print(f"{name}: the weights of an earlier run are kept as {earlier}.pt and .json.")
    return _save_pair(name, data, card, folder)


def _save_pair(name: str, data: bytes, card: dict, folder: str | Path) -> dict:
    """Weights, card, and only then the weights in their place: killed in between, `_weights` puts them there."""
    write_atomically(_arriving(name, folder), data)
    card = save_card(name, card, folder)
    with suppress(FileNotFoundError):  # another page has just loaded them
        _arriving(name, folder).replace(Path(folder) / f"{name}.pt")
    return card


def _arriving(name: str, folder: str | Path) -> Path:
    return Path(folder) / f"{name}.pt.new"


def _weights(name: str, folder: str | Path, sha256: str) -> bytes:
    """The weights that a card speaks of, which a killed process may have left beside their place; else DataError."""
    path, arriving = Path(folder) / f"{name}.pt", _arriving(name, folder)
    if arriving.exists() and hashlib.sha256(arriving.read_bytes()).hexdigest() == sha256:
        arriving.replace(path)
    advice = f"train again, restore it with git, or delete {name}.json as well, if it is of a run of yours"
    return verified(path.read_bytes() if path.exists() else b"", sha256, path.name, advice)


def load_weights(name: str, module: nn.Module, folder: str | Path = WEIGHTS, example: tuple[Tensor, ...] = ()) -> dict:
    """Fill a module with the trained weights folder/name.pt, put it into eval mode, and return their card.

    example: as in `save_weights`; where the module answers it otherwise than the one that was trained, that is said.
    Raises DataError when the files are missing or damaged, or of another architecture than the module.
    """
    card = load_card(name, folder)
    path = Path(folder) / f"{name}.pt"
    state = load_tensors(_weights(name, folder, card.get("sha256", "")), path.name)
    asked, made = getattr(module, "prediction", None), card.get("settings", {}).get("prediction")
    if None not in (asked, made) and asked != made:
        raise DataError(f"{path.name} is of a denoiser with prediction={made!r}: build one, not {asked!r}.")
    if any(parameter.is_meta for parameter in module.parameters()):
        raise DataError(f"the module for {path.name} holds no memory yet: call module.to_empty(device=…) first.")
    try:
        load_uncompiled_state(copy.deepcopy(module), state)  # refused before anything changes
        load_uncompiled_state(module, state)
    except RuntimeError as error:
        raise DataError(
            f"{path.name} in {path.parent.name}/ is of another architecture or an older version than this "
            f"{type(module).__name__}: build the one that was saved, or move both away if they are of a run of yours."
        ) from error
    module.eval()
    if example and "answer" in card and not np.allclose(_answer(module, example), card["answer"], 0.01, 1e-3):
        advice = "Train again (TRAIN = 'yes'); no figure here is this net's."
        print(f"{name}: these weights were trained in another net, whose code has changed since. {advice}")
    return card


def measured(
    name: str,
    measure: Callable[[], dict],
    *,
    now: bool,
    runs: str | Path,
    device: torch.device,
    of: str | None = None,
    settings: dict | None = None,
) -> dict:
    """The card of a study: measured now and written to `runs`, or the one that is there, yours before the shipped one.

    name: of the card.
    measure: called without arguments, returns what was found.
    now: whether to measure.
    runs: the folder of your runs.
    device: what it is measured on, for the card.
    of: the SHA-256 of the weights that it is about, if it is about any.
    settings: what else the figures depend on. Where a card is of other weights, or other settings, that is said.
    Raises DataError where there is no card, or where one could not be kept, before anything is measured.
    """
    if now:
        _refuse_unwritable(Path(runs))
        about = {"weights_sha256": of, "settings": settings}
        return save_card(name, about | measure() | environment(device), runs)
    card = load_card(name, newest(runs, name))
    here, there = json.loads(json.dumps(_for_json(settings or {}), default=str)), card.get("settings") or {}
    others = ["weights"] if card.get("weights_sha256") != of else [key for key in here if there.get(key) != here[key]]
    if others:
        print(f"{name}: measured with other {', '.join(others)}, {card['date']}. Set MEASURE to 'yes' for these.")
    return card


def _refuse_unwritable(folder: Path) -> None:
    """DataError before anything is measured that could not be kept."""
    trial = folder / ".writable"
    write_atomically(trial, b"")
    trial.unlink(missing_ok=True)


def thinned(histories: list[dict[str, Tensor]], points: int) -> dict:
    """What runs logged, name -> (N,) each, in means of "every" so many values, about `points` a run; without seconds.

    Returns "every", and name -> means (R, n) of R runs, for a card; what is left over at the end is dropped.
    """
    count = len(histories[0]["loss"])
    every = max(1, count // points)
    used = count // every * every

    def means(name: str) -> Tensor:
        return torch.stack([history[name][:used].view(-1, every).mean(dim=1) for history in histories])

    return {"every": every, **{name: means(name) for name in histories[0] if name != "seconds"}}


def summary(card: dict) -> str:
    """One line on the run that a card is of: its budget, its data, where and when."""
    batch, where = card["settings"]["batch"], f"on {card['device']}, {card['date']}"
    where = f"{card['seconds'] / 60:,.0f} min {where}" if "seconds" in card else where
    where = f"{len(card['seeds'])} seed(s), {where}" if "seeds" in card else where
    steps = f"{card['steps']:,} of {card['step_limit']:,} steps"
    return f"{card['parameters']:,} parameters, {steps}, batch {batch}, on {card['data']}: {where}."
