import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import batches, files, muon, training
from helpers.checkpoint import TrainingError
from tests import pages
from tests.test_muon import _Mixed


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


# --- the run ----------------------------------------------------------------------------------------------------


def same(a, b):
    """Whether two states are equal, bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
@pytest.mark.parametrize("number", [1, 2])
def test_the_notebooks_loops_interrupted_end_as_if_never_stopped_bit_for_bit(tmp_path, monkeypatch, number, capsys):
    ends, batch = [], batches.batch
    for folder, stops in (("whole", [None]), ("in pieces, Läufe", [3, 4, None])):
        for stop in stops:

            def interrupted(*inputs, stop=stop):
                if inputs[-1] == stop:
                    raise KeyboardInterrupt
                return batch(*inputs)

            monkeypatch.setattr(batches, "batch", interrupted)
            train, _ = pages.training_loop(number, tmp_path / folder, STEPS=7, BATCH=4, SAVE_EVERY=2)
            if stop is None:
                ends.append(train())
                continue
            with pytest.raises(KeyboardInterrupt):
                train()
            assert f"up to step {stop // 2 * 2}:" in capsys.readouterr().out
    (net, history, certificate), (net_again, history_again, certificate_again) = ends
    assert same(net.state_dict(), net_again.state_dict())
    assert same(history["loss"], history_again["loss"])
    assert certificate["steps"] == certificate_again["steps"] == 7


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks children to kill them")
def test_killed_twenty_times_it_ends_as_if_left_alone(tmp_path):
    command, root = [sys.executable, "-m", "tests.killed_run", tmp_path, "20"], Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) of them", done.stdout)[1]) > 0  # some kills did hit a save
    whole, killed = (next((tmp_path / name).glob("*.ckpt")) for name in ("whole", "killed"))
    contents = [files.load_tensors(path.read_bytes().partition(b"\n")[2], path.name) for path in (whole, killed)]
    for state in contents:
        del state["history"]["seconds"]
    assert same(*contents)
    assert not list((tmp_path / "killed").glob("*.part"))


RECIPE = {"steps": 5, "seed": 1, "lr": 0.5, "warmup": 1, "lr_decay": 0.5}


def _run(folder, **changes):
    torch.manual_seed(0)
    net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=9.0)
    return training.Run(folder, "run", RECIPE, net=net, optimizer=optimizer, **changes)


def test_a_run_seeds_sets_the_rate_logs_saves_and_shows(tmp_path):
    shown, seen = [], []
    with _run(tmp_path, save_every=2, show=lambda step, history: shown.append((step, list(history)))) as run:
        for step in run:
            seen.append((float(torch.rand(1)), run.parts["optimizer"].param_groups[0]["lr"]))
            run.log(loss=torch.tensor(float(step)))
            if step == 3:
                run.log(other=7)
    assert [rate for _, rate in seen] == [0.5 * training.lr_factor(i, 5, warmup=1, decay=0.5) for i in range(5)]
    for step, (number, _) in enumerate(seen):
        batches.seed_step(1, step)
        assert number == float(torch.rand(1))
    both = ["loss", "other"]
    assert shown == [(0, []), (1, ["loss"]), (2, ["loss"]), (3, ["loss"]), (4, both), (5, both)]
    assert run.finished
    assert run.history["loss"].tolist() == [0, 1, 2, 3, 4]
    assert run.history["other"].isnan().tolist() == [True, True, True, False, True]
    assert (run.history["seconds"] > 0).all()
    with _run(tmp_path) as again:
        assert again.finished
        assert list(again) == []
        assert same(again.history["loss"], run.history["loss"])
        assert again.made == run.made


def test_a_loss_that_is_not_finite_stops_before_it_is_saved(tmp_path):
    def train():
        with _run(tmp_path, save_every=2) as run:
            for step in run:
                run.log(loss=torch.tensor(float("nan") if step == 3 else 1.0))

    with pytest.raises(TrainingError, match=r"not finite near step 4.*lower LR"):
        train()
    with _run(tmp_path) as again:
        assert again.done == 2


def test_a_run_that_was_not_begun_or_notes_no_loss_stops_at_once(tmp_path):
    with pytest.raises(TrainingError, match="begin a run by `with Run"):
        next(iter(_run(tmp_path)))
    seen = []
    with pytest.raises(TrainingError, match="note the loss of each step"), _run(tmp_path) as run:
        seen.extend(run)
    assert seen == [0]


def test_a_damaged_checkpoint_leaves_the_run_unlocked(tmp_path):
    with _run(tmp_path, save_every=2) as run:
        for _ in run:
            run.log(loss=1.0)
    run.path.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(files.DataError, match="damaged"), _run(tmp_path):
            pass


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


def test_what_trained_a_run_is_noted_with_it_and_kept_by_a_finished_one(tmp_path):
    for precision in ("bfloat16", "float32"):
        with _run(tmp_path, about={"precision": precision}) as run:
            for _ in run:
                run.log(loss=1.0)
        assert run.made["precision"] == "bfloat16"
