"""What every training loop shares: device and precision, schedule, EMA, checkpoints, shipped weights."""

from __future__ import annotations

import copy
import datetime
import hashlib
import io
import json
import math
import numbers
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from helpers import unet
from helpers.classifiers import DigitSumClassifier, PaperClassifier
from helpers.diffusion import Denoiser
from helpers.files import Lock, expanded, verified, write_atomically

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"


def check_settings(values: dict, **rules: list | tuple) -> None:
    """Refuse settings that cannot be obeyed, in one sentence, before anything is spent on them: ValueError.

    values: name -> value, such as a notebook's `globals()`. rules: name -> a list of choices, or (least, most), either
    of them None where there is no limit; of a list of numbers, every one is checked.
    """
    for name, rule in rules.items():
        value = values[name]
        if isinstance(rule, list):
            if value not in rule:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, rule))}, got {value!r}")
            continue
        least, most = rule
        for number in value if isinstance(value, list | tuple) else [value]:
            is_number = isinstance(number, numbers.Real) and not isinstance(number, bool)
            if not is_number or (least is not None and number < least) or (most is not None and number > most):
                limits = ((word, limit) for word, limit in (("least", least), ("most", most)) if limit is not None)
                allowed = " and".join(f" at {word} {limit:,}" for word, limit in limits)
                raise ValueError(f"{name} must be a number{',' * bool(allowed)}{allowed}, got {number!r}")
        if isinstance(value, list | tuple) and not value:
            raise ValueError(f"{name} must not be empty")


class TrainingError(RuntimeError):
    """A run cannot go on, or a file of one cannot be used; the message says what to do."""


# --- device and precision ---------------------------------------------------------------------------------------


def pick_device() -> torch.device:
    """CUDA where there is a card, Apple's MPS next, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def wants_training(train: str, device: torch.device, *, demo: bool) -> bool:
    """Whether a notebook trains: train "yes", "no", or "auto" (with a GPU, or on the demo data)."""
    if train not in ("auto", "yes", "no"):
        raise ValueError(f"TRAIN must be 'auto', 'yes' or 'no', got {train!r}")
    return train == "yes" or (train == "auto" and (demo or device.type != "cpu"))


def amp_dtype(device: torch.device) -> torch.dtype:
    """The fastest safe type for autocast: bfloat16 where the hardware has it, float16 on older cards, else float32.

    A T4 only emulates bfloat16, so emulation does not count. float16 needs a GradScaler.
    """
    if device.type == "cuda":
        real = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if real else torch.float16
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
    return torch.float32


def disable_tf32() -> None:
    """Full float32 products on the GPU, as in the report's classifier."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


# --- schedule and averaging -------------------------------------------------------------------------------------


def lr_factor(step: int, steps: int, *, warmup: int = 0, decay: float = 1.0) -> float:
    """Share of the peak learning rate at `step` in 0…steps - 1: linear warm-up, plateau, cosine decay to zero.

    warmup: number of steps; decay: the share of all steps, at the end, over which the rate falls (1: from the start).
    """
    rise = min(1.0, (step + 1) / (warmup + 1))
    left = (steps - step) / (decay * steps) if decay else 1.0
    return rise * 0.5 * (1 - math.cos(math.pi * min(1.0, left)))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group this rate; a rate that is a tensor changes in place, so that a recorded step sees it."""
    for group in optimizer.param_groups:
        group["lr"] = group["lr"].fill_(lr) if isinstance(group["lr"], Tensor) else float(lr)


def recorded(function: Callable[..., Tensor | None], device: torch.device, warm_up: int = 3) -> Callable:
    """`function` as one CUDA graph, so that the GPU never waits for Python to name a kernel; off the GPU, itself.

    function(*tensors) -> a tensor or None. Its first calls run as they are, the next one is recorded, and from then on
    the recording is played. A recording knows addresses, not names: whatever the function uses besides its arguments
    (weights, gradients, an optimiser's state) must be tensors on the device that stay in their places, and the result
    is overwritten by the next call. Random numbers are new each time and follow `torch.manual_seed`.
    Source: PyTorch's documentation of CUDA graphs, "whole-network capture".
    """
    if device.type != "cuda":
        return function
    stream, calls, graph, places, result = torch.cuda.Stream(), 0, torch.cuda.CUDAGraph(), (), None

    def call(*tensors: Tensor) -> Tensor | None:
        nonlocal calls, places, result
        calls += 1
        if calls <= warm_up:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                result = function(*tensors)
            torch.cuda.current_stream().wait_stream(stream)
            return result
        if calls == warm_up + 1:
            places = tuple(tensor.clone() for tensor in tensors)
            with torch.cuda.graph(graph):
                result = function(*places)
        for place, tensor in zip(places, tensors, strict=True):
            place.copy_(tensor)
        graph.replay()
        return result

    return call


class EMA:
    """Exponential moving average of a module's parameters, kept in `.module` (eval mode, no gradients).

    The decay ramps up as (1 + n) / (10 + n) until it reaches `decay`, so early averages follow the weights.
    Call `update` after each optimiser step. Buffers are copied.
    """

    def __init__(self, module: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.updates = 0
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), 1 - decay)
        for mine, new in zip(self.module.buffers(), module.buffers(), strict=True):
            mine.copy_(new)
        self.updates += 1

    def state_dict(self) -> dict:
        return {"updates": self.updates, "module": self.module.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        self.module.load_state_dict(state["module"])


def check_finite(loss: Tensor, step: int) -> None:
    """Raise TrainingError with advice when the loss is NaN or infinite."""
    if not torch.isfinite(loss).all():
        raise TrainingError(
            f"the loss is not finite near step {step:,}. The last checkpoint is intact: lower LR (try half), "
            "or set AMP to False, and run the cell again."
        )


# --- checkpoints ------------------------------------------------------------------------------------------------


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except OSError as error:
        raise TrainingError(f"could not write {path.name} ({error.strerror}): free some space or choose another RUNS "
                            "folder. The previous file is untouched.") from error  # fmt: skip


def _load(data: bytes, name: str) -> dict:
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        raise TrainingError(f"{name} is not a file of plain tensors and was not opened: {error}") from error


def _gpu_memory() -> str:
    if not torch.cuda.is_available():
        return ""
    free, total = torch.cuda.mem_get_info()
    return f" ({free / 2**30:.1f} of the GPU's {total / 2**30:.1f} GiB are free)"


def _plain(state):
    """The same state with numpy's numbers as Python's, which `torch.load` opens without running code."""
    if isinstance(state, dict):
        return {_plain(key): _plain(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(map(_plain, state))
    return state.item() if isinstance(state, np.generic) else state


def _code() -> str:
    """SHA-256 of the helpers' source, first 8 digits: the code that a checkpoint was made with."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:8]


class Checkpoint:
    """The state of a run in one file: written atomically, verified by SHA-256, tied to the run's settings.

    >>> with Checkpoint("runs", "diffusion", settings, net=net, ema=ema, optimizer=optimizer) as checkpoint:
    ...     step, history = checkpoint.resume()   # (0, None) where there is nothing yet
    ...     checkpoint.save(step, history)

    parts: anything with `state_dict` and `load_state_dict`. The settings' fingerprint is part of the file name, so
    a run with other settings never meets, and never overwrites, this one. Since every random number of a step comes
    from (seed, step), see `batches.seed_step`, a resumed run equals one that never stopped, bit for bit.

    Inside the `with`, no other process can train into the same file (TrainingError there); a keyboard interrupt says
    where the run stands; running out of memory becomes a TrainingError with advice.
    """

    def __init__(self, folder: str | Path, name: str, settings: dict, **parts):
        text = json.dumps(_plain(settings), sort_keys=True)
        self.path = expanded(folder) / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.ckpt"
        self.settings = text
        self.parts = parts
        self.saved = 0  # the step up to which the file holds the run
        self.made = {}  # the environment that made it, for the result card
        self.lock = Lock(self.path.with_name(f".{self.path.stem}.lock"))

    def __enter__(self) -> Checkpoint:
        try:
            free = self.lock.acquire()
        except OSError as error:
            raise TrainingError(f"cannot write to {self.path.parent} ({error.strerror}): set RUNS to a folder where "
                                "you may write.") from error  # fmt: skip
        if not free:
            raise TrainingError(f"{self.path.name} is being trained by another notebook: wait for it, stop it, or set "
                                "RUNS to another folder.")  # fmt: skip
        return self

    def __exit__(self, _kind, error: BaseException | None, _trace) -> None:
        self.lock.release()
        if isinstance(error, KeyboardInterrupt):
            print(f"Interrupted. {self.path} holds the run up to step {self.saved:,}: run the cell again to go on.")
        no_memory = ("can't allocate memory", "MPS backend out of memory")
        if isinstance(error, torch.cuda.OutOfMemoryError) or any(words in str(error) for words in no_memory):
            batch = json.loads(self.settings).get("batch", 2)
            raise TrainingError(f"out of memory at batch {batch}{_gpu_memory()}: set BATCH to {batch // 2} or less, "
                                "or close what else uses the memory.") from error  # fmt: skip

    def save(self, step: int, history: Tensor) -> None:
        """Write every part, the history (on the device that trains) and where and by what code this was made."""
        self.made = environment(history.device)
        state = {"step": step, "history": history.cpu(), "settings": self.settings, "code": _code(), "made": self.made}
        state["parts"] = {name: _plain(part.state_dict()) for name, part in self.parts.items()}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        payload = buffer.getvalue()
        _write(self.path, hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)
        self.saved = step

    def resume(self) -> tuple[int, Tensor | None]:
        """Load every part and return (steps done, history), or (0, None) when no checkpoint exists.

        Says from where it goes on, and whether the helpers' code has changed since. A run that began without a
        GradScaler and goes on with one (another card) gets a fresh one. Raises TrainingError when the file is damaged,
        belongs to other settings or to other shapes; nothing is changed then.
        """
        if not self.path.exists():
            return 0, None
        digest, _, payload = self.path.read_bytes().partition(b"\n")
        if not verified(payload, digest.decode(errors="replace")):
            raise TrainingError(f"{self.path.name} is damaged (its SHA-256 is wrong): delete it to start afresh.")
        state = _load(payload, self.path.name)
        if state["settings"] != self.settings or state["parts"].keys() != self.parts.keys():
            raise TrainingError(f"{self.path.name} belongs to a run with other settings: move it away.")
        before = {name: copy.deepcopy(part.state_dict()) for name, part in self.parts.items()}
        try:
            for name, part in self.parts.items():
                if state["parts"][name]:  # empty: of a GradScaler that was not needed
                    part.load_state_dict(state["parts"][name])
        except Exception as error:
            for name, part in self.parts.items():
                if before[name]:
                    part.load_state_dict(before[name])
            raise TrainingError(f"{self.path.name} is of a net or an optimiser of another shape: move it away, or "
                                "undo what was changed.") from error  # fmt: skip
        self.saved, self.made = state["step"], state["made"]
        changed = "; the code in helpers/ has changed since" if state["code"] != _code() else ""
        made = f"{self.made['date']}, {self.made['device']}"
        print(f"{self.path.name} ({made}) goes on after step {self.saved:,}{changed}. To train anew, delete it.")
        return self.saved, state["history"]


def thin(values: Tensor, every: int) -> list[float]:
    """Means of each `every` values (N,) to four digits, for a result card; what is left over at the end is dropped."""
    return [float(f"{mean:.4g}") for mean in values[: len(values) // every * every].view(-1, every).mean(dim=1)]


# --- results and shipped weights --------------------------------------------------------------------------------


def environment(device: torch.device) -> dict:
    """The versions, device and date that a result card records."""
    chip = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} {device.type}"
    count = torch.get_num_threads()
    threads = f", {count} thread{'s' if count > 1 else ''}" if device.type == "cpu" else ""
    return {
        "device": chip + threads,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def save_weights(name: str, module: nn.Module, card: dict, folder: str | Path) -> Path:
    """Write folder/name.pt and its result card folder/name.json (with the weights' SHA-256); return the card's path."""
    folder = expanded(folder)
    buffer = io.BytesIO()
    torch.save({key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}, buffer)
    _write(folder / f"{name}.pt", buffer.getvalue())
    return save_card(name, {**card, "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}, folder)


def save_card(name: str, card: dict, folder: str | Path) -> Path:
    """Write the result card folder/name.json and return its path."""
    path = expanded(folder) / f"{name}.json"
    _write(path, (json.dumps(_plain({"name": name, **card}), indent=1) + "\n").encode())
    return path


def load_card(name: str, folder: str | Path = WEIGHTS) -> dict:
    """The result card of a run; TrainingError where there is none."""
    path = expanded(folder) / f"{name}.json"
    if not path.exists():
        raise TrainingError(f"there is no {path.name} in {path.parent.name}/: train first, or restore it with git.")
    return json.loads(path.read_text())


def load_weights(name: str, folder: str | Path = WEIGHTS) -> tuple[nn.Module, dict]:
    """A trained network in eval mode and its result card.

    name: "classifier_paper", "classifier_best", or for a `Denoiser` "diffusion", "diffusion_plain" (the network without
    loops), "diffusion_paper" (that one by the plain DDPM recipe). Raises TrainingError when the files are missing,
    damaged or of another architecture.
    """

    def denoiser() -> Denoiser:
        settings = card["settings"]
        network = unet.plain if settings["network"] == "plain" else unet.UNet
        return Denoiser(network(tuple(settings["widths"])), settings["prediction"])

    makers = {"classifier_paper": PaperClassifier, "classifier_best": DigitSumClassifier}
    makers |= dict.fromkeys(("diffusion", "diffusion_plain", "diffusion_paper"), denoiser)
    if name not in makers:
        raise ValueError(f"unknown weights {name!r}: choose one of {', '.join(makers)}")
    card = load_card(name, folder)
    path = expanded(folder) / f"{name}.pt"
    data = path.read_bytes() if path.exists() else b""
    if not verified(data, card["sha256"]):
        raise TrainingError(f"{path.name} is missing or damaged (its SHA-256 is wrong): restore it with git.")
    try:
        module = makers[name]()
        module.load_state_dict(_load(data, path.name))
    except (RuntimeError, KeyError) as error:  # KeyError: a card that does not say which network
        raise TrainingError(f"{path.name} is of another architecture or version ({error}): move it away.") from error
    return module.eval(), card
