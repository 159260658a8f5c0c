"""What every training loop shares: device and precision, learning-rate schedule, EMA, the recorded step."""

import copy
import math
from collections.abc import Callable

import torch
import torch._dynamo  # the first optimiser would import it: half imported, by an interrupt, it stays broken
from torch import Tensor, nn


def pick_device() -> torch.device:
    """CUDA where there is a card, Apple's MPS next, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


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


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """torch.autocast to this type; with float32 it does nothing."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def allow_tf32(allowed: bool) -> None:
    """Whether an NVIDIA GPU may round factors of float32 products to TF32's 10 bits of mantissa, which is faster."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def uncompiled(module: nn.Module) -> nn.Module:
    """A copy of one's own, in place, without what `torch.compile` has put around it, its parts and their forwards."""
    module = getattr(module, "_orig_mod", module)
    for part in module.modules():
        if hasattr(part.__dict__.get("forward"), "_torchdynamo_orig_callable"):
            del part.forward  # which would still run the other module
        part._modules.update({name: of._orig_mod for name, of in part._modules.items() if hasattr(of, "_orig_mod")})
    return module


def uncompiled_state(part) -> dict:
    """The state of a module by the names that it has when nothing of it is compiled; of anything else, its state."""
    state = part.state_dict()
    return {key.replace("_orig_mod.", ""): of for key, of in state.items()} if isinstance(part, nn.Module) else state


def load_uncompiled_state(part, state: dict) -> None:
    """Load what `uncompiled_state` returned, of the module itself or of a compiled one, into this or a compiled one."""
    if isinstance(part, nn.Module):
        names = {key.replace("_orig_mod.", ""): key for key in part.state_dict()}
        state = {names.get(key, key): of for key, of in state.items()}
    part.load_state_dict(state)


def lr_factor(step: int, steps: int, *, warmup: int = 0, decay: float = 1.0) -> float:
    """Share of the peak learning rate at `step` in 0…steps - 1: linear warm-up, plateau, cosine decay to zero.

    warmup: number of steps; decay: the share of all steps, at the end, over which the rate falls (1: from the start).
    """
    rise = min(1.0, (step + 1) / (warmup + 1))
    left = max(0, steps - step) / (decay * steps) if decay else 1.0
    return rise * 0.5 * (1 - math.cos(math.pi * min(1.0, left)))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group this rate; a rate that is a tensor changes in place, so that a recorded step sees it."""
    for group in optimizer.param_groups:
        group["lr"] = group["lr"].fill_(lr) if isinstance(group["lr"], Tensor) else float(lr)


def recorded(function: Callable[..., Tensor | None], device: torch.device, warm_up: int = 3) -> Callable:
    """`function` as one CUDA graph, so that the GPU never waits for Python to name a kernel; off the GPU, itself.

    function(*tensors) -> a tensor or None. Its first calls run as they are, the next one is recorded, and from then on
    the recording is played. Whatever the function uses besides its arguments (weights, gradients, an optimiser's state)
    must be tensors on the device that stay in their places; the result is overwritten by the next call. Random numbers
    follow `torch.manual_seed`. Source: PyTorch's documentation of CUDA graphs, "whole-network capture".
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

    Call `update` after each optimiser step. The decay ramps up as (1 + n) / (10 + n) to `decay`. Buffers are copied.
    """

    def __init__(self, module: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay, self.updates = decay, 0
        self.module = uncompiled(copy.deepcopy(module)).eval().requires_grad_(False)

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


def step_away(base: nn.Module, worse: nn.Module, weight: float) -> nn.Module:
    """A copy of `base` with parameters θ + weight · (θ - θ'), where θ are those of `base` and θ' those of `worse`.

    Source: Neon, Alemohammad et al. 2025.
    """
    moved = copy.deepcopy(base)
    with torch.no_grad():
        torch._foreach_lerp_(list(moved.parameters()), list(worse.parameters()), -weight)
    return moved
