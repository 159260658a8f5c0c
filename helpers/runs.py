"""A training run: its steps, the file that holds its state, and the lock that keeps others out of that file."""

import copy
import hashlib
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from helpers.batches import seed_step
from helpers.files import load_tensors, plain, verified, write_atomically
from helpers.results import environment
from helpers.training import load_uncompiled_state, lr_factor, set_lr, uncompiled_state

try:
    import fcntl
except ImportError:  # Windows, where every file system has locks
    fcntl = None


SAVE_SECONDS = 300.0  # on a slow machine, `save_every` steps may take an hour


class TrainingError(RuntimeError):
    """A run cannot go on; the message says what to do."""


class Run:
    """The steps of one training run, from where its checkpoint stands to the last, and the record of them.

    It seeds each step and sets its learning rate before the loop's body; after it, it logs, saves and shows.

    >>> with Run("runs", "diffusion", settings, net=net, ema=ema, optimizer=optimizer, limits=limits) as run:
    ...     for step in run:
    ...         …  # batch, loss, backward, step, EMA
    ...         run.log(loss=loss)

    folder: of the checkpoint; made, if it is not there.
    name: the checkpoint is name-HASH.ckpt, with a hash of the settings, so that a run with other settings never meets,
        and never overwrites, this one.
    settings: whatever makes two runs differ, among it "steps", "seed", "lr", "warmup" and "lr_decay" (`lr_factor`).
    save_every: steps between two checkpoints, five minutes at most, each written atomically and verified by its SHA-256
        when it is read.
    show: called with (steps done, history) at the start and after each step.
    about: what else to note of each checkpoint, beside where it was made; it may change when a run goes on.
    parts: anything with `state_dict` and `load_state_dict`; at least "net" and "optimizer".

    `history` holds what was logged, among it the "loss": name -> (steps,), on the net's device, NaN where nothing was.
    A resumed run equals one that never stopped, bit for bit: every random number comes from `batches.seed_step`.

    Inside the `with`, no other process can train into the same file (TrainingError there); a keyboard interrupt, or
    leaving the loop early, says where the run stands; running out of memory becomes a TrainingError with advice, and so
    does a loss that is not finite, before it is saved. Raises DataError where a file is damaged or cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        name: str,
        settings: dict,
        *,
        save_every: int = 500,
        show: Callable[[int, dict[str, Tensor]], None] | None = None,
        about: dict | None = None,
        **parts,
    ):
        self.settings, self.save_every, self.show = settings, save_every, show
        self.text = json.dumps(plain(settings), sort_keys=True)  # as the file holds them
        self.path = Path(folder) / f"{name}-{hashlib.sha256(self.text.encode()).hexdigest()[:8]}.ckpt"
        self.about, self.made = about or {}, {}  # the environment that made the file, for the result card
        self.parts = parts
        self.device = next(parts["net"].parameters()).device
        self.lock, self.begun = None, False  # held inside the `with`; whether its loop was begun
        self.logged = False  # whether this step's loss was
        self.done, self.saved, self.history = 0, 0, {}

    def __enter__(self) -> "Run":
        self.lock, self.begun = _locked(self.path), False
        try:
            self._resume()
        except BaseException:
            self.lock.release()
            raise
        return self

    def __exit__(self, _kind, error: BaseException | None, _trace) -> None:
        self.lock.release()
        self.lock = None
        if isinstance(error, KeyboardInterrupt) or (error is None and not self.finished):
            nothing = "Nothing of it was saved yet (what was finished before is)"
            holds = f"{self.path} holds the run up to step {self.saved:,}" if self.saved else nothing
            print(f"{'Interrupted' if error else 'Left early'}. {holds}: run the cell again to go on.")
        no_memory = ("can't allocate memory", "MPS backend out of memory")
        if isinstance(error, torch.cuda.OutOfMemoryError) or any(words in str(error) for words in no_memory):
            batch = self.settings.get("batch", 1)
            smaller = f"try a batch of {batch // 2} or less (which begins anew), or " if batch > 1 else ""
            raise TrainingError(f"out of memory at batch {batch}: {smaller}close what else uses the memory.") from error

    @property
    def finished(self) -> bool:
        return self.done >= self.settings["steps"]

    def __iter__(self) -> Iterator[int]:
        if self.lock is None:
            raise TrainingError("begin a run by `with Run(…) as run:`, which resumes it and keeps others out.")
        if self.begun and not self.finished:  # the step that was left may be half done
            raise TrainingError("this loop was left early: begin anew by `with Run(…) as run:`, which resumes it.")
        self.begun = True
        r, clock, last = self.settings, time.perf_counter(), time.monotonic()
        self._show()
        for step in range(self.done, r["steps"]):
            seed_step(r["seed"], step)  # so that a resumed run draws what it would have drawn
            factor = lr_factor(step, r["steps"], warmup=r["warmup"], decay=r["lr_decay"])
            set_lr(self.parts["optimizer"], r["lr"] * factor)
            self.logged = False
            yield step
            if not self.logged:
                raise TrainingError("log each step's loss, by run.log(loss=…): a run without it cannot be judged.")
            before, clock = clock, time.perf_counter()
            self.log(seconds=clock - before)
            self.done = step + 1
            if self.done % self.save_every == 0 or self.finished or time.monotonic() - last > SAVE_SECONDS:
                self._save()
                last = time.monotonic()
            self._show()

    def log(self, **values: Tensor | float) -> None:
        """Log numbers of the step in progress."""
        self.logged |= "loss" in values
        for name, value in values.items():
            value = value.detach() if isinstance(value, Tensor) else value
            if name not in self.history:
                self.history[name] = torch.full((self.settings["steps"],), torch.nan, device=self.device)
            self.history[name][self.done] = value

    def _show(self) -> None:
        if self.show:
            self.show(self.done, {name: values for name, values in self.history.items() if name != "seconds"})

    def _save(self) -> None:
        """Write every part, what was logged, and where and by what code this was made."""
        if not self.history["loss"][: self.done].isfinite().all():
            intact = f" The checkpoint of step {self.saved:,} is intact." if self.saved else ""
            advice = "Set AMP to False in the settings to go on, or lower LR (try half) to begin anew, and run the "
            raise TrainingError(f"the loss is not finite near step {self.done:,}.{intact} {advice}notebook from there.")
        self.made = joined(self.made, environment(self.device) | self.about)
        history = {name: values.cpu() for name, values in self.history.items()}
        state = {"step": self.done, "history": history, "settings": self.text, "code": _code(), "made": self.made}
        state["parts"] = {name: plain(uncompiled_state(part)) for name, part in self.parts.items()}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        payload = buffer.getvalue()
        write_atomically(self.path, hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)
        self.saved = self.done

    def _resume(self) -> None:
        """Load what the file holds, if there is one; say from where it goes on, and whether the code has changed since.

        Where the file is damaged (DataError), or of other settings or shapes (TrainingError), nothing is changed.
        """
        if not self.path.exists():
            return
        state = self._read()
        self._load(state["parts"])
        self.done = self.saved = state["step"]
        self.history = {name: values.to(self.device) for name, values in state["history"].items()}
        self.made = state["made"]
        changed = "; the code in helpers/ has changed since" if state["code"] != _code() else ""
        made = ", ".join(str(self.made[key]) for key in ("date", "device", *self.about) if key in self.made)
        stands = "is finished" if self.finished else f"goes on after step {self.done:,}"
        print(f"{self.path.name} ({made}) {stands}{changed}. To train anew, delete it.")

    def _read(self) -> dict:
        name = self.path.name
        digest, _, payload = self.path.read_bytes().partition(b"\n")
        verified(payload, digest.decode(errors="replace"), name, "delete it to start afresh")
        state = load_tensors(payload, name)
        complete = {"step", "history", "settings", "code", "made", "parts"} <= state.keys()
        if not complete or not isinstance(state["history"], dict):
            raise TrainingError(f"{name} is of an older version: move it away.")
        if state["settings"] != self.text or state["parts"].keys() != self.parts.keys():
            raise TrainingError(f"{name} belongs to a run with other settings: move it away.")
        return state

    def _load(self, states: dict[str, dict]) -> None:
        """Load the states of all parts, or of none. A GradScaler that the run began without stays a fresh one."""
        before = {name: copy.deepcopy(uncompiled_state(part)) for name, part in self.parts.items()}
        try:
            self._load_parts(states)
        except Exception as error:
            self._load_parts(before)
            what = f"{self.path.name} is of another shape or an older version"
            raise TrainingError(f"{what}: move it away, or undo what was changed.") from error

    def _load_parts(self, states: dict[str, dict]) -> None:
        for name, part in self.parts.items():
            if states[name]:  # empty: of a GradScaler that is not needed
                load_uncompiled_state(part, states[name])


def joined(before: dict, now: dict) -> dict:
    """What a card says of two parts of one run: of the later one; device, versions and precision of both."""
    said = dict(now)
    for key in before.keys() & {"device", "python", "torch", "precision"} & now.keys():
        if before[key] != now[key]:
            said[key] = before[key].removesuffix(f", then {now[key]}") + f", then {now[key]}"
    return said


def _locked(path: Path) -> FileLock:
    """The lock of a checkpoint, held by this process, and free again when that ends, however it ends; TrainingError.

    A file system without locks (some network drives) refuses nobody. A file that only says "locked" would not do: it
    would outlive a killed job.
    """
    lock = FileLock(path.with_name(f".{path.stem}.lock"), timeout=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if _has_locks(path.parent):
            lock.acquire()
    except Timeout as error:
        advice = "wait for it, stop it, or set RUNS to another folder"
        raise TrainingError(f"{path.name} is being trained by another notebook: {advice}.") from error
    except OSError as error:
        advice = "set RUNS to a folder where you may write"
        raise TrainingError(f"cannot write to {path.parent} ({error.strerror}): {advice}.") from error
    return lock


def _has_locks(folder: Path) -> bool:
    """Whether files in this folder can be locked; tried on a file that nobody else knows."""
    with tempfile.TemporaryFile(dir=folder) as probe:
        try:
            if fcntl:
                fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # ENOLCK, EOPNOTSUPP, ENOSYS
            return False
    return True


def _code() -> str:
    """SHA-256 of the helpers' source, first 8 digits: the code that a checkpoint was made with."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:8]
