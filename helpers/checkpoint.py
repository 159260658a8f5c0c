"""The state of a training run in one file: atomic, verified, tied to its settings, and locked while it trains."""

from __future__ import annotations

import copy
import datetime
import hashlib
import io
import json
import platform
from pathlib import Path

import torch
from torch import Tensor

from helpers.files import expanded, load_tensors, plain, verified, write_atomically
from helpers.lock import Lock


class TrainingError(RuntimeError):
    """A run cannot go on; the message says what to do."""


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


class Checkpoint:
    """The state of a run in one file: written atomically, verified by SHA-256, tied to the run's settings.

    parts: anything with `state_dict` and `load_state_dict`. about: what else to note of each save, beside where it was
    made; it may change when a run goes on. The settings' fingerprint is part of the file name, so a run with other
    settings never meets, and never overwrites, this one. Since every random number of a step comes from (seed, step),
    see `batches.seed_step`, a resumed run equals one that never stopped, bit for bit.

    Inside the `with`, no other process can train into the same file (TrainingError there); a keyboard interrupt says
    where the run stands; running out of memory becomes a TrainingError with advice.
    """

    def __init__(self, folder: str | Path, name: str, settings: dict, *, about: dict | None = None, **parts):
        text = json.dumps(plain(settings), sort_keys=True)
        self.path = expanded(folder) / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.ckpt"
        self.settings = text
        self.parts = parts
        self.saved = 0  # the step up to which the file holds the run
        self.about, self.made = about or {}, {}  # the environment that made it, for the result card
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
            nothing = "Nothing of it was saved yet (what was finished before is)"
            holds = f"{self.path} holds the run up to step {self.saved:,}" if self.saved else nothing
            print(f"Interrupted. {holds}: run the cell again to go on.")
        no_memory = ("can't allocate memory", "MPS backend out of memory")
        if isinstance(error, torch.cuda.OutOfMemoryError) or any(words in str(error) for words in no_memory):
            batch = json.loads(self.settings).get("batch", 2)
            raise TrainingError(f"out of memory at batch {batch}{_gpu_memory()}: set BATCH to {batch // 2} or "
                                "less, which begins anew, or close what else uses the memory.") from error  # fmt: skip

    def save(self, step: int, history: dict[str, Tensor], device: torch.device) -> None:
        """Write every part, what was logged, and where and by what code this was made. Raises DataError."""
        self.made = environment(device) | self.about
        logged = {name: values.cpu() for name, values in history.items()}
        state = {"step": step, "history": logged, "settings": self.settings, "code": _code(), "made": self.made}
        state["parts"] = {name: plain(part.state_dict()) for name, part in self.parts.items()}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        payload = buffer.getvalue()
        write_atomically(self.path, hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)
        self.saved = step

    def resume(self) -> tuple[int, dict[str, Tensor]]:
        """Load every part and return (steps done, what was logged), or (0, {}) when no checkpoint exists.

        Says from where it goes on, or that it is finished, and whether the helpers' code has changed since. A run that
        began without a GradScaler and goes on with one (another card) gets a fresh one. Raises DataError when the file
        is damaged, TrainingError when it belongs to other settings or to other shapes; nothing is changed then.
        """
        if not self.path.exists():
            return 0, {}
        digest, _, payload = self.path.read_bytes().partition(b"\n")
        verified(payload, digest.decode(errors="replace"), self.path.name, "delete it to start afresh")
        state = load_tensors(payload, self.path.name)
        if not {"step", "history", "settings", "code", "made", "parts"} <= state.keys():
            raise TrainingError(f"{self.path.name} is of an older version: move it away.")
        if state["settings"] != self.settings or state["parts"].keys() != self.parts.keys():
            raise TrainingError(f"{self.path.name} belongs to a run with other settings: move it away.")
        before = {name: copy.deepcopy(part.state_dict()) for name, part in self.parts.items()}
        try:
            for name, part in self.parts.items():
                if state["parts"][name]:  # empty: of a GradScaler that was not needed
                    part.load_state_dict(state["parts"][name])
            history = dict(state["history"])
        except Exception as error:
            for name, part in self.parts.items():
                if before[name]:
                    part.load_state_dict(before[name])
            raise TrainingError(f"{self.path.name} is of another shape or an older version: move it away, or "
                                "undo what was changed.") from error  # fmt: skip
        self.saved, self.made = state["step"], state["made"]
        changed = "; the code in helpers/ has changed since" if state["code"] != _code() else ""
        made = ", ".join(str(self.made[key]) for key in ("date", "device", *self.about) if key in self.made)
        done = self.saved == json.loads(self.settings).get("steps")
        stands = "is finished" if done else f"goes on after step {self.saved:,}"
        print(f"{self.path.name} ({made}) {stands}{changed}. To train anew, delete it.")
        return self.saved, history


def _gpu_memory() -> str:
    if not torch.cuda.is_available():
        return ""
    free, total = torch.cuda.mem_get_info()
    return f" ({free / 2**30:.1f} of the GPU's {total / 2**30:.1f} GiB are free)"


def _code() -> str:
    """SHA-256 of the helpers' source, first 8 digits: the code that a checkpoint was made with."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:8]
