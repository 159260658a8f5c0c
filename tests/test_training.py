import contextlib
import copy
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import muon, training
from tests.test_muon import _Mixed
from tests.test_runs import same


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_autocast_computes_in_the_type_it_is_given(dtype):
    a = torch.ones(2, 2)
    with training.autocast(torch.device("cpu"), dtype):
        assert (a @ a).dtype == dtype
        assert torch.is_autocast_enabled("cpu") == (dtype != torch.float32)


def test_lr_factor_rises_stays_and_falls_to_zero():
    values = [training.lr_factor(step, 100, warmup=10, decay=0.3) for step in range(101)]
    assert values[0] == pytest.approx(1 / 11)
    assert values[10:71] == [1.0] * 61
    assert values[85] == pytest.approx(0.5)
    assert values[100] == pytest.approx(0)
    assert all(a >= b for a, b in zip(values[10:-1], values[11:], strict=True))
    assert training.lr_factor(50, 100) == pytest.approx(0.5)
    assert training.lr_factor(150, 100) == 0.0  # past the end


class _Tape(TorchDispatchMode):
    """A stand-in for a CUDA graph on a CPU: what was computed while it was on is computed again, in the same places."""

    def __init__(self):
        super().__init__()
        self.calls, self.first = [], True

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self):
        if self.first:  # a CUDA graph does not compute while it records, this one does
            self.first = False
            return
        for function, args, kwargs, out in self.calls:
            again = function(*args, **kwargs)
            pairs = zip(out, again, strict=True) if isinstance(out, (list, tuple)) else [(out, again)]
            for place, value in pairs:
                if isinstance(place, torch.Tensor) and place is not value:
                    place.copy_(value)


@pytest.fixture
def tape(monkeypatch):
    """torch.cuda with `_Tape` in place of its graphs."""
    nothing = type("Stream", (), {"wait_stream": lambda *_: None})
    monkeypatch.setattr(torch.cuda, "Stream", nothing)
    monkeypatch.setattr(torch.cuda, "current_stream", nothing)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", _Tape)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: graph)
    return torch.device("cuda")


def test_a_recorded_function_sees_new_arguments_and_what_lies_in_the_same_places(tape):
    weight, calls = torch.ones(2), []

    def function(x, y):
        calls.append(1)
        return (x * weight + y).sum()

    recorded = training.recorded(function, tape)
    for step in range(7):
        weight.fill_(step)
        x, y = torch.full((2,), 10.0 * step), torch.full((2,), 0.5)
        assert float(recorded(x, y)) == 2 * (10 * step * step + 0.5)
    assert len(calls) == 4  # three to warm up, one to record
    assert training.recorded(function, torch.device("cpu")) is function


def test_muons_recorded_step_reads_rate_count_and_gradients_anew(tape):
    torch.manual_seed(0)
    nets = [_Mixed(), _Mixed()]
    nets[1].load_state_dict(nets[0].state_dict())
    optimizers = [muon.Muon(net, lr=0.01) for net in nets]
    steps = [optimizers[0].step, training.recorded(optimizers[1].step, tape)]
    for net in nets:
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
    for number in range(8):
        generator = torch.Generator().manual_seed(number)
        for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
            one.grad.normal_(generator=generator)
            other.grad.copy_(one.grad)
        for optimizer, step in zip(optimizers, steps, strict=True):
            training.set_lr(optimizer, 0.01 / (1 + number))
            step()
    assert same(*[net.state_dict() for net in nets])
    assert [float(group["steps"]) for group in optimizers[1].param_groups] == [0, 8]


def test_ema_equals_its_closed_form():
    net = nn.Linear(2, 1, bias=False)
    values = [torch.full((1, 2), float(v)) for v in (3, -1, 4, 1, -5)]
    net.weight.data = values[0].clone()
    ema = training.EMA(net, decay=0.4)
    expected = values[0].clone()
    for n, value in enumerate(values[1:]):
        net.weight.data = value.clone()
        ema.update(net)
        decay = min(0.4, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(ema.module.weight, expected)
    assert not ema.module.weight.requires_grad
    with pytest.raises(ValueError, match="decay"):
        training.EMA(net, 1.0)


def test_ema_is_torchs_own_average_with_a_ramp_buffers_included():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    def ramp(averages, current, count):
        torch._foreach_lerp_(averages, current, 1 - min(0.9, float(count) / (9 + float(count))))

    ema, reference = training.EMA(net, decay=0.9), torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=ramp)
    reference.n_averaged.fill_(1)  # so that the first update averages, too
    for _ in range(200):
        net(torch.randn(8, 3))  # moves the batch norm's statistics
        for parameter in net.parameters():
            parameter.data += torch.randn_like(parameter)
        ema.update(net)
        reference.update_parameters(net)
    assert same(ema.module.state_dict(), reference.module.state_dict())
    assert same(ema.module[1].running_mean, net[1].running_mean)
    assert not ema.module.training


@pytest.mark.parametrize(("real_bf16", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_amp_dtype_does_not_believe_in_emulation(monkeypatch, real_bf16, expected):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or real_bf16
    )
    assert training.amp_dtype(torch.device("cuda")) is expected


@pytest.mark.parametrize(("warmup", "decay"), [(0, 1.0), (0, 0.5), (10, 1.0), (7, 0.25)])
def test_lr_factor_is_torchs_own_cosine_after_a_line(warmup, decay):
    steps = 60
    falling = int(decay * steps)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, falling)
    for step in range(steps):
        expected = optimizer.param_groups[0]["lr"] * min(1, (step + 1) / (warmup + 1))
        assert training.lr_factor(step, steps, warmup=warmup, decay=decay) == pytest.approx(expected, abs=1e-9)
        optimizer.step()
        if step >= steps - falling:
            cosine.step()
    assert training.lr_factor(59, 60, decay=0.0) == 1.0


def test_step_away_goes_the_other_way_and_changes_neither_network():
    base, worse = (torch.nn.utils.skip_init(nn.Linear, 2, 1) for _ in range(2))
    for net, value in ((base, 1.0), (worse, 1.5)):
        nn.init.constant_(net.weight, value)
        nn.init.constant_(net.bias, 0.0)
    for weight, expected in ((0.0, 1.0), (1.0, 0.5), (2.0, 0.0)):
        moved = training.step_away(base, worse, weight)
        assert moved.weight.tolist() == [[expected] * 2]
        assert moved.bias.tolist() == [0.0]
    assert (base.weight.tolist(), worse.weight.tolist()) == ([[1.0, 1.0]], [[1.5, 1.5]])


def test_tf32_is_allowed_or_not():
    for allowed, said in ((True, "high"), (False, "highest")):
        training.allow_tf32(allowed)
        assert torch.get_float32_matmul_precision() == said
        assert torch.backends.cudnn.allow_tf32 is allowed


def test_a_compiled_net_is_averaged_as_the_net_that_it_is():
    net = nn.Linear(3, 3)
    compiled = torch.compile(net)
    ema = training.EMA(compiled, 0.5)
    nn.init.zeros_(net.weight)
    ema.update(compiled)
    assert type(ema.module) is nn.Linear
    assert ema.module.state_dict().keys() == net.state_dict().keys()
    assert not ema.module.weight.equal(net.weight)


def test_nothing_large_is_first_imported_by_a_training_which_an_interrupt_would_leave_half_imported():
    """sympy and torch's compiler, above all, which the first optimiser of torch's asks for."""
    code = """
        import sys
        import torch
        from helpers import muon, runs, training
        before = set(sys.modules)
        net = torch.nn.Linear(12, 12)
        ema = training.EMA(net, 0.9)
        for optimizer in (muon.Muon(net, 0.1), torch.optim.AdamW(net.parameters())):
            scaler = torch.amp.GradScaler("cpu", enabled=False)
            with training.autocast(torch.device("cpu"), torch.bfloat16):
                loss = net(torch.ones(2, 12)).square().mean()
            scaler.scale(loss).backward()
            optimizer.step()
            optimizer.zero_grad()
            ema.update(net)
        print(sorted(set(sys.modules) - before))
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", ["list", "weight norm", "forward", "own forward", "part", "place"])
def test_the_average_of_any_net_answers_as_a_copy_of_it_in_eval_mode(kind):
    """Modules held in a list, parametrised ones, and whatever torch.compile has put anywhere."""

    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.drop = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)
            self.steps = [self.a, self.norm, self.drop]

        def forward(self, x):
            for step in self.steps:
                x = step(x)
            return x

    torch.manual_seed(0)
    net = Listed()
    expected = copy.deepcopy(net).eval()
    if kind == "weight norm":
        net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.Dropout(0.5))
        expected = copy.deepcopy(net).eval()
    elif kind == "own forward":  # which nobody compiled, and which stays
        net.forward = expected.forward = lambda x: 2 * x
    elif kind == "forward":
        net.forward = torch.compile(net.forward, backend="eager")
    elif kind == "part":
        net.steps = []
        net = nn.Sequential(torch.compile(net.a, backend="eager"), net.norm, net.drop)
        expected = nn.Sequential(expected.a, expected.norm, expected.drop)
    elif kind == "place":
        net.compile(backend="eager")
    ema, x = training.EMA(net, 0.5), torch.randn(6, 3)
    for _ in range(2):
        torch.testing.assert_close(ema.module(x), expected(x))
    assert net.training
    assert not any(part.training for part in ema.module.modules())
    net(x)
    ema.update(net)  # with batch norm's statistics
    if kind != "weight norm":
        mine, new = (dict(of.named_buffers()) for of in (ema.module, net))
        assert all(torch.equal(value, new[name]) for name, value in mine.items())


@pytest.mark.parametrize("device", ["cpu", "mps", "xpu", "meta"])
def test_off_an_nvidia_gpu_nothing_is_recorded(device):
    function = lambda x: x  # noqa: E731
    assert training.recorded(function, torch.device(device)) is function


def test_every_group_of_weights_gets_the_rate():
    net = nn.Sequential(nn.Linear(12, 12), nn.Linear(2, 2))
    for optimizer in (muon.Muon(net, 0.1), torch.optim.SGD([{"params": part.parameters()} for part in net], 0.1)):
        training.set_lr(optimizer, 0.25)
        assert [float(group["lr"]) for group in optimizer.param_groups] == [0.25] * 2
