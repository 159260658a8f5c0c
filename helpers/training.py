"""What every training loop shares: EMA, learning-rate schedule, mixed precision, checkpoints, shipped weights."""

from __future__ import annotations

import copy
import datetime
import hashlib
import io
import json
import math
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.nn import functional as F

from helpers import unet
from helpers.classifiers import DigitSumClassifier, PaperClassifier
from helpers.data import write_atomically
from helpers.diffusion import Denoiser

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"


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
        group["lr"] = group["lr"].fill_(lr) if isinstance(group["lr"], Tensor) else lr


class Muon(torch.optim.Optimizer):
    """Muon for the weights of linear and convolutional layers, Adam for everything else, with one learning rate.

    A weight is taken as a matrix (out, in·k·k). Its step is the momentum of its gradient made orthogonal, so that all
    directions move by the same amount, and scaled to the size of a typical Adam step. Biases, norms, embeddings and
    matrices of at most 8 rows or columns (the head of a U-Net) get Adam with betas (0.9, 0.99), no weight decay.
    Sources: Jordan et al. 2024 (Muon); Liu et al. 2025 (one learning rate for both, "match RMS").
    """

    def __init__(self, net: nn.Module, lr: float):
        layers = [m.weight for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        matrices = [weight for weight in layers if min(weight.flatten(1).shape) > 8]
        taken = set(map(id, matrices))
        rest = [parameter for parameter in net.parameters() if id(parameter) not in taken]
        super().__init__([{"params": matrices}, {"params": rest}], {"lr": lr, "steps": 0})
        self._numbers_to_device()

    def _numbers_to_device(self) -> None:
        """Rate and count become tensors beside the weights, so that a step recorded once reads them each time."""
        for group in self.param_groups:
            for name in ("lr", "steps"):
                group[name] = torch.tensor(float(group[name]), device=group["params"][0].device)

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self._numbers_to_device()

    @torch.no_grad()
    def step(self) -> None:
        matrices, rest = self.param_groups
        weights, gradients, (averages,) = self._with_state(matrices, "average")
        torch._foreach_lerp_(averages, gradients, 0.05)  # momentum 0.95
        ahead = torch._foreach_lerp(gradients, averages, 0.95)  # Nesterov's look ahead
        updates = orthogonalise([matrix.flatten(1) for matrix in ahead])
        torch._foreach_mul_(updates, [0.2 * max(update.shape) ** 0.5 for update in updates])
        torch._foreach_mul_(updates, matrices["lr"])
        torch._foreach_sub_(weights, [u.reshape(w.shape) for u, w in zip(updates, weights, strict=True)])

        weights, gradients, (averages, squares) = self._with_state(rest, "average", "square")
        rest["steps"] += 1
        torch._foreach_lerp_(averages, gradients, 0.1)
        torch._foreach_lerp_(squares, torch._foreach_mul(gradients, gradients), 0.01)
        spreads = torch._foreach_sqrt(squares)
        torch._foreach_div_(spreads, (1 - 0.99 ** rest["steps"]) ** 0.5)
        torch._foreach_add_(spreads, 1e-8)
        updates = torch._foreach_div(averages, spreads)
        torch._foreach_mul_(updates, rest["lr"] / (1 - 0.9 ** rest["steps"]))
        torch._foreach_sub_(weights, updates)

    def _with_state(self, group: dict, *names: str) -> tuple[list[Tensor], list[Tensor], list[list[Tensor]]]:
        """A group's parameters that have a gradient, the gradients, and their state by name, zero at first."""
        weights = [weight for weight in group["params"] if weight.grad is not None]
        for weight in weights:
            if not self.state[weight]:
                self.state[weight] = {name: torch.zeros_like(weight) for name in names}
        return weights, [w.grad for w in weights], [[self.state[w][name] for w in weights] for name in names]


def orthogonalise(matrices: list[Tensor]) -> list[Tensor]:
    """Each matrix (R, C) with its singular values moved near 1 (about 0.7…1.2), by five Newton-Schulz iterations.

    Matrices with the same number of rows (or columns, where those are fewer) go together, padded with columns of
    zeros, which stay zero and change no singular value. In half precision on a GPU, which is precise enough here.
    Source: the quintic polynomial of Jordan et al. 2024.
    """
    wide = [matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T for matrix in matrices]
    out = list(matrices)
    for rows in {len(matrix) for matrix in wide}:
        group = [i for i, matrix in enumerate(wide) if len(matrix) == rows]
        columns = max(wide[i].shape[1] for i in group)
        x = torch.stack([F.pad(wide[i], (0, columns - wide[i].shape[1])) for i in group])
        x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
        x = x.to(amp_dtype(x.device)) if x.is_cuda else x
        for _ in range(5):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
        for i, matrix in zip(group, x.float(), strict=True):
            found = matrix[:, : wide[i].shape[1]]
            out[i] = found if wide[i] is matrices[i] else found.T
    return out


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


class Checkpoint:
    """The state of a run in one file: written atomically, verified by SHA-256, tied to the run's settings.

    >>> with Checkpoint("runs", "diffusion", settings, net=net, ema=ema, optimizer=optimizer) as checkpoint:
    ...     step, history = checkpoint.resume()   # (0, None) where there is nothing yet
    ...     checkpoint.save(step, history)

    parts: anything with `state_dict` and `load_state_dict`. The settings' fingerprint is part of the file name, so
    a run with other settings never meets, and never overwrites, this one. Since every random number of a step comes
    from (seed, step), see `data.seed_step`, a resumed run equals one that never stopped, bit for bit.

    Inside the `with`, no other process can train into the same file (TrainingError there); a keyboard interrupt says
    where the run stands; running out of memory becomes a TrainingError with advice.
    """

    def __init__(self, folder: str | Path, name: str, settings: dict, **parts):
        text = json.dumps(settings, sort_keys=True)
        self.path = Path(folder) / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.ckpt"
        self.settings = text
        self.parts = parts
        self.saved = 0  # the step up to which the file holds the run
        self.lock = FileLock(self.path.with_name(f".{self.path.stem}.lock"), timeout=0)

    def __enter__(self) -> Checkpoint:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.lock.acquire()
        except Timeout:
            raise TrainingError(f"{self.path.name} is being trained by another notebook: wait for it, stop it, or set "
                                "RUNS to another folder.") from None  # fmt: skip
        except NotImplementedError:
            pass  # a file system without locks, such as some network drives
        except OSError as error:
            raise TrainingError(f"cannot write to {self.path.parent} ({error.strerror}): set RUNS to a folder where "
                                "you may write.") from error  # fmt: skip
        return self

    def __exit__(self, _kind, error: BaseException | None, _trace) -> None:
        self.lock.release()
        if isinstance(error, KeyboardInterrupt):
            print(f"Interrupted. {self.path} holds the run up to step {self.saved:,}: run the cell again to go on.")
        if isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error):
            batch = json.loads(self.settings).get("batch", 2)
            raise TrainingError(f"out of memory at batch {batch}{_gpu_memory()}: set BATCH to {batch // 2} or less, "
                                "or close what else uses the memory.") from error  # fmt: skip

    def save(self, step: int, history: Tensor) -> None:
        state = {"step": step, "history": history.cpu(), "settings": self.settings}
        state["parts"] = {name: part.state_dict() for name, part in self.parts.items()}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        payload = buffer.getvalue()
        _write(self.path, hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)
        self.saved = step

    def resume(self) -> tuple[int, Tensor | None]:
        """Load every part and return (steps done, history), or (0, None) when no checkpoint exists.

        Raises TrainingError when the file is damaged or belongs to other settings; nothing is changed then.
        """
        if not self.path.exists():
            return 0, None
        digest, _, payload = self.path.read_bytes().partition(b"\n")
        if hashlib.sha256(payload).hexdigest().encode() != digest:
            raise TrainingError(f"{self.path.name} is damaged (its SHA-256 is wrong): delete it to start afresh.")
        state = _load(payload, self.path.name)
        if state["settings"] != self.settings or state["parts"].keys() != self.parts.keys():
            raise TrainingError(f"{self.path.name} belongs to a run with other settings: move it away.")
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        self.saved = state["step"]
        return state["step"], state["history"]


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
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def save_weights(name: str, module: nn.Module, card: dict, folder: str | Path) -> Path:
    """Write folder/name.pt and its result card folder/name.json (with the weights' SHA-256); return the card's path."""
    folder = Path(folder)
    buffer = io.BytesIO()
    torch.save({key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}, buffer)
    _write(folder / f"{name}.pt", buffer.getvalue())
    return save_card(name, {**card, "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}, folder)


def save_card(name: str, card: dict, folder: str | Path) -> Path:
    """Write the result card folder/name.json and return its path."""
    path = Path(folder) / f"{name}.json"
    _write(path, (json.dumps({"name": name, **card}, indent=1) + "\n").encode())
    return path


def load_card(name: str, folder: str | Path = WEIGHTS) -> dict:
    """The result card of a run; TrainingError where there is none."""
    path = Path(folder) / f"{name}.json"
    if not path.exists():
        raise TrainingError(f"there is no {path.name} in {Path(folder).name}/: train first, or restore it with git.")
    return json.loads(path.read_text())


def load_weights(name: str, folder: str | Path = WEIGHTS) -> tuple[nn.Module, dict]:
    """A trained network in eval mode and its result card.

    name: "classifier_paper", "classifier_best", or for a `Denoiser` "diffusion", "diffusion_plain" (the network without
    loops), "diffusion_paper" (that one by the plain DDPM recipe). Raises TrainingError when the files are missing,
    damaged or of another architecture.
    """

    def denoiser() -> Denoiser:
        settings = card["settings"]
        return Denoiser(unet.plain() if settings["network"] == "plain" else unet.UNet(), settings["prediction"])

    makers = {"classifier_paper": PaperClassifier, "classifier_best": DigitSumClassifier}
    makers |= dict.fromkeys(("diffusion", "diffusion_plain", "diffusion_paper"), denoiser)
    if name not in makers:
        raise ValueError(f"unknown weights {name!r}: choose one of {', '.join(makers)}")
    card = load_card(name, folder)
    path = Path(folder) / f"{name}.pt"
    data = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(data).hexdigest() != card["sha256"]:
        raise TrainingError(f"{path.name} is missing or damaged (its SHA-256 is wrong): restore it with git.")
    module = makers[name]()
    try:
        module.load_state_dict(_load(data, path.name))
    except RuntimeError as error:
        raise TrainingError(f"{path.name} belongs to another architecture: {error}") from error
    return module.eval(), card
