import contextlib
import copy
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import batches, budget, classifiers, data, diffusion, muon, training, unet
from tests import killed_run
from tests.test_muon import _Mixed


def test_lr_factor_rises_stays_and_falls_to_zero():
    values = [training.lr_factor(step, 100, warmup=10, decay=0.3) for step in range(101)]
    assert values[0] == pytest.approx(1 / 11)
    assert values[10:71] == [1.0] * 61
    assert values[85] == pytest.approx(0.5)
    assert values[100] == pytest.approx(0)
    assert all(a >= b for a, b in zip(values[10:-1], values[11:], strict=True))
    assert training.lr_factor(50, 100) == pytest.approx(0.5)


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
    assert _same(*[net.state_dict() for net in nets])
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


@pytest.mark.parametrize(
    ("train", "kind", "demo", "expected"),
    [("auto", "cpu", False, False), ("auto", "cpu", True, True), ("auto", "cuda", False, True),
     ("yes", "cpu", False, True), ("no", "cuda", True, False)],
)  # fmt: skip
def test_wants_training(train, kind, demo, expected):
    assert training.wants_training(train, torch.device(kind), demo=demo) is expected


def test_wants_training_refuses_a_typo():
    with pytest.raises(ValueError, match="TRAIN"):
        training.wants_training("YES", torch.device("cpu"), demo=False)


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


def test_check_settings():
    values = {"A": "yes", "B": 3, "C": [1, 2.5], "D": np.float64(0.5), "E": (0.0, 6.0)}
    training.check_settings(values, A=["yes", "no"], B=(3, 3), C=(1, None), D=(0, 1), E=(0, None))
    for rules, said in [
        ({"A": ["no"]}, "A must be one of 'no', got 'yes'"),
        ({"A": (0, 1)}, "A must be a number, at least 0 and at most 1, got 'yes'"),
        ({"B": (4, None)}, "B must be a number, at least 4, got 3"),
        ({"C": (None, 2)}, "C must be a number, at most 2, got 2.5"),
    ]:
        with pytest.raises(ValueError, match=f"^{said}$"):
            training.check_settings(values, **rules)


def test_check_finite():
    training.check_finite(torch.ones(3), 5)
    with pytest.raises(training.TrainingError, match=r"near step 5.*lower LR"):
        training.check_finite(torch.tensor([1.0, float("nan")]), 5)


def test_thin():
    assert training.thin(torch.tensor([1.0, 2, 3, 4, 9]), 2) == [1.5, 3.5]


# --- resuming ---------------------------------------------------------------------------------------------------


def _classifier_run(folder, stops):
    """Stopped after each of `stops` and started afresh; the last is the end."""
    images, labels = (part[:256] for part in data.addnist("", "valid", "demo"))
    for stop in stops:
        checkpoint = killed_run.run(folder, images, labels, stops[-1], stop)
    return checkpoint


def _diffusion_run(folder, stops):
    images, labels = (part[:64] for part in data.cifar100("", "test", "demo"))
    for stop in stops:
        torch.manual_seed(0)
        denoiser = diffusion.Denoiser(unet.UNet((8, 16), (1, 1)))
        ema = training.EMA(denoiser, 0.9)
        optimizer = muon.Muon(denoiser, lr=1e-3)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
        limits = budget.Budget(parameters=10**6, steps=stops[-1])
        parts = {"net": denoiser, "ema": ema, "optimizer": optimizer, "scaler": scaler, "limits": limits}
        checkpoint = training.Checkpoint(folder, "run", {"steps": stops[-1]}, **parts)
        start, history = checkpoint.resume()
        history = torch.zeros(stops[-1]) if history is None else history
        for step in range(start, stop):
            batches.seed_step(0, step)
            x, y = batches.batch(images, labels, 8, 0, step)
            loss = diffusion.loss(denoiser, x, y, label_dropout=0.3)[0].mean()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            limits.step(optimizer, scaler)
            ema.update(denoiser)
            history[step] = loss.detach()
        checkpoint.save(stop, history)
    return checkpoint


def _same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("run", [_classifier_run, _diffusion_run])
def test_resuming_equals_never_stopping_bit_for_bit(tmp_path, run):
    whole, parts = run(tmp_path / "whole", [11]), run(tmp_path / "in pieces, Läufe", [3, 4, 11])
    assert _same(whole.resume()[1], parts.resume()[1])
    for name in whole.parts:
        assert _same(whole.parts[name].state_dict(), parts.parts[name].state_dict()), name
    assert parts.parts["limits"].steps_used == 11


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks children to kill them")
def test_killed_twenty_times_it_ends_as_if_left_alone(tmp_path):
    command, root = [sys.executable, "-m", "tests.killed_run", tmp_path, "20"], Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) of them", done.stdout)[1]) > 0  # some kills did hit a save
    whole, killed = (next((tmp_path / name).glob("*.ckpt")) for name in ("whole", "killed"))
    contents = [training._load(path.read_bytes().partition(b"\n")[2], path.name) for path in (whole, killed)]
    assert _same(*contents)
    assert not list((tmp_path / "killed").glob("*.part"))


def _checkpoint(folder, settings=None):
    return training.Checkpoint(folder, "run", settings or {"a": 1}, net=nn.Linear(2, 2))


def test_nothing_there_means_a_fresh_start(tmp_path):
    assert _checkpoint(tmp_path).resume() == (0, None)


@pytest.mark.parametrize("damage", ["bit", "truncated", "empty"])
def test_damaged_checkpoint_is_refused_and_left_alone(tmp_path, damage):
    checkpoint = _checkpoint(tmp_path)
    checkpoint.save(5, torch.zeros(3))
    content = bytearray(checkpoint.path.read_bytes())
    content[len(content) // 2] ^= 1
    bad = {"bit": bytes(content), "truncated": bytes(content[:-100]), "empty": b""}[damage]
    checkpoint.path.write_bytes(bad)
    before = checkpoint.parts["net"].weight.detach().clone()
    with pytest.raises(training.TrainingError, match="damaged.*delete it"):
        checkpoint.resume()
    assert checkpoint.path.read_bytes() == bad
    assert torch.equal(checkpoint.parts["net"].weight, before)


def test_a_checkpoint_that_would_run_code_is_not_opened(tmp_path):
    class Evil:
        def __reduce__(self):
            return (pytest.fail, ("code was run",))

    with pytest.raises(training.TrainingError, match="not a file of plain tensors"):
        training._load(pickle.dumps(Evil(), protocol=2), "evil.ckpt")


def test_other_settings_are_another_file(tmp_path):
    _checkpoint(tmp_path, {"a": 1}).save(5, torch.zeros(3))
    assert _checkpoint(tmp_path, {"a": 2}).resume() == (0, None)
    other = _checkpoint(tmp_path, {"a": 2})
    _checkpoint(tmp_path, {"a": 1}).path.rename(other.path)
    with pytest.raises(training.TrainingError, match="other settings"):
        other.resume()


def test_a_run_goes_on_with_a_gradscaler_that_it_did_not_begin_with(tmp_path):
    """In bfloat16 at first, then on a card that has float16 only; and the other way round."""
    for first, then in ((False, True), (True, False)):
        folder = tmp_path / str(first)
        scalers = [torch.amp.GradScaler("cpu", init_scale=8.0, enabled=enabled) for enabled in (first, then)]
        for scaler in scalers:
            scaler.scale(torch.ones(1))
        saved = training.Checkpoint(folder, "run", {}, scaler=scalers[0], net=nn.Linear(2, 2))
        saved.save(3, torch.zeros(3))
        resumed = training.Checkpoint(folder, "run", {}, scaler=scalers[1], net=nn.Linear(2, 2))
        assert resumed.resume()[0] == 3
        assert _same(resumed.parts["net"].state_dict(), saved.parts["net"].state_dict())
        assert scalers[1].is_enabled() is then


def test_a_checkpoint_of_another_shape_is_refused_and_changes_nothing(tmp_path):
    def parts(width):
        net = nn.Linear(2, width)
        return {"limits": budget.Budget(parameters=99, steps=9), "optimizer": muon.Muon(net, 0.1), "net": net}

    saved = training.Checkpoint(tmp_path, "run", {}, **parts(3))
    saved.parts["limits"].steps_used = 5
    saved.save(5, torch.zeros(3))
    resumed = training.Checkpoint(tmp_path, "run", {}, **parts(4))
    before = {name: copy.deepcopy(part.state_dict()) for name, part in resumed.parts.items()}
    with pytest.raises(training.TrainingError, match="another shape: move it away"):
        resumed.resume()
    assert _same(before, {name: part.state_dict() for name, part in resumed.parts.items()})


@pytest.mark.parametrize("lr", [np.sqrt(1e-5), np.linspace(0, 1, 4)[1], np.float32(0.25)])
def test_numpys_numbers_are_read_again_bit_for_bit(tmp_path, lr):
    def run(folder, stops):
        for stop in stops:
            torch.manual_seed(0)
            net = nn.Linear(3, 2)
            optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=np.float64(0.1))
            checkpoint = training.Checkpoint(folder, "run", {"lr": lr}, net=net, optimizer=optimizer)
            for step in range(checkpoint.resume()[0], stop):
                batches.seed_step(0, step)
                training.set_lr(optimizer, lr * training.lr_factor(step, 4))
                optimizer.zero_grad()
                net(torch.randn(2, 3)).square().sum().backward()
                optimizer.step()
            checkpoint.save(stop, torch.zeros(4))
        return checkpoint

    whole, parts = run(tmp_path / "a", [4]), run(tmp_path / "b", [1, 4])
    assert _same(whole.parts["net"].state_dict(), parts.parts["net"].state_dict())
    plain = training.Checkpoint(tmp_path, "run", {"lr": float(lr)})
    assert plain.path.name == whole.path.name  # an equal number is the same setting
    training.save_card("card", {"lr": lr}, tmp_path)
    assert training.load_card("card", tmp_path)["lr"] == float(lr)


def test_a_resumed_run_says_when_it_was_made_how_to_train_anew_and_that_the_code_has_changed(
    tmp_path, monkeypatch, capsys
):
    _checkpoint(tmp_path).save(7, torch.zeros(3))
    _checkpoint(tmp_path).resume()
    said = capsys.readouterr().out
    pattern = r"run-\w+\.ckpt \(\d{4}-\d\d-\d\d, .* cpu, .*\) goes on after step 7\. To train anew, delete it\."
    assert re.search(pattern, said)
    monkeypatch.setattr(training, "_code", lambda: "other")
    _checkpoint(tmp_path).resume()
    assert "the code in helpers/ has changed since" in capsys.readouterr().out


def test_a_home_folder_is_a_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    with training.Checkpoint("~/runs", "run", {}, net=nn.Linear(2, 2)) as checkpoint:
        checkpoint.save(1, torch.zeros(1))
    training.save_weights("classifier_paper", classifiers.PaperClassifier(), {}, "~/runs")
    training.load_weights("classifier_paper", "~/runs")
    assert sorted(path.suffix for path in (tmp_path / "runs").glob("[!.]*")) == [".ckpt", ".json", ".pt"]


def test_a_failed_save_keeps_the_previous_one(tmp_path, monkeypatch):
    checkpoint = _checkpoint(tmp_path)
    checkpoint.save(5, torch.zeros(3))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(training.TrainingError, match=r"No space left.*free some space"):
        checkpoint.save(6, torch.zeros(3))
    assert _checkpoint(tmp_path).resume()[0] == 5
    assert [p.name for p in tmp_path.iterdir()] == [checkpoint.path.name]


def test_a_folder_one_may_not_write_to_is_named_before_training_begins(tmp_path, monkeypatch):
    (tmp_path / "runs").write_text("a file is in the way")
    with (
        pytest.raises(training.TrainingError, match="cannot write to .*runs.*set RUNS"),
        _checkpoint(tmp_path / "runs"),
    ):
        pass

    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)  # os.mkdir would not do: Python 3.10 has taken it beforehand
    with pytest.raises(training.TrainingError, match="Read-only file system"), _checkpoint(tmp_path / "drive"):
        pass
    with pytest.raises(training.TrainingError, match="Read-only file system"):
        training.save_weights("classifier_paper", classifiers.PaperClassifier(), {}, tmp_path / "drive")


def test_two_processes_cannot_train_into_one_file(tmp_path):
    with _checkpoint(tmp_path) as first:
        first.save(5, torch.zeros(3))
        with pytest.raises(training.TrainingError, match="another notebook"), _checkpoint(tmp_path):
            pass
        with _checkpoint(tmp_path, {"a": 2}):
            pass  # another run in the same folder is welcome
    with _checkpoint(tmp_path) as second:
        assert second.resume()[0] == 5


def test_an_interrupt_says_where_the_run_stands(tmp_path, capsys):
    checkpoint = _checkpoint(tmp_path)
    checkpoint.save(1500, torch.zeros(3))
    with pytest.raises(KeyboardInterrupt), checkpoint:
        raise KeyboardInterrupt
    said = capsys.readouterr().out
    assert "step 1,500" in said
    assert checkpoint.path.name in said
    with _checkpoint(tmp_path) as again:  # the lock is free
        assert again.resume()[0] == 1500


@pytest.mark.parametrize(
    "error", [torch.cuda.OutOfMemoryError("CUDA out of memory."),
              RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
              RuntimeError("MPS backend out of memory (MPS allocated: 9 GB, other allocations: 1 GB).")]
)  # fmt: skip
def test_out_of_memory_becomes_advice(tmp_path, error):
    with (
        pytest.raises(training.TrainingError, match="batch 512.*set BATCH to 256"),
        _checkpoint(tmp_path, {"batch": 512}),
    ):
        raise error


# --- weights ----------------------------------------------------------------------------------------------------


def test_weights_make_the_round_trip(tmp_path):
    net, folder = classifiers.PaperClassifier(), tmp_path / "Übung 1, データ"  # spaces and letters beyond ASCII
    training.save_weights("classifier_paper", net, {"steps": 3}, folder)
    loaded, card = training.load_weights("classifier_paper", folder)
    assert card["steps"] == 3
    assert not loaded.training
    assert _same(net.state_dict(), loaded.state_dict())


@pytest.mark.parametrize(("prediction", "network"), [("edm", "looped"), ("epsilon", "plain")])
def test_a_denoiser_comes_back_with_its_network_and_what_it_predicts(tmp_path, prediction, network):
    net = unet.plain((16, 8, 8)) if network == "plain" else unet.UNet((8, 8, 16))
    card = {"settings": {"prediction": prediction, "network": network, "widths": net.widths}}
    training.save_weights("diffusion", diffusion.Denoiser(net, prediction), card, tmp_path)
    loaded, _ = training.load_weights("diffusion", tmp_path)
    assert loaded.prediction == prediction
    assert (loaded.net.loops, loaded.net.widths) == (net.loops, net.widths)


def test_damaged_missing_foreign_and_unknown_weights(tmp_path):
    with pytest.raises(ValueError, match="classifier_paper"):
        training.load_weights("clasifier", tmp_path)
    with pytest.raises(training.TrainingError, match="train first"):
        training.load_weights("diffusion", tmp_path)
    training.save_weights("classifier_paper", classifiers.DigitSumClassifier(), {}, tmp_path)
    with pytest.raises(training.TrainingError, match="of another architecture"):
        training.load_weights("classifier_paper", tmp_path)
    training.save_weights("diffusion", nn.Linear(2, 2), {"settings": {"prediction": "edm"}}, tmp_path)
    with pytest.raises(training.TrainingError, match="of another architecture or version"):
        training.load_weights("diffusion", tmp_path)
    path = tmp_path / "classifier_paper.pt"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(training.TrainingError, match="damaged"):
        training.load_weights("classifier_paper", tmp_path)


SHIPPED = sorted(path.stem for path in training.WEIGHTS.glob("*.pt"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_load_and_keep_within_their_budget(name):
    module, card = training.load_weights(name)
    assert budget.count_parameters(module) == card["parameters"] <= card["parameter_limit"]
    assert 0 < card["steps"] <= card["step_limit"]
    assert {"data", "settings", "device", "torch", "date", "sha256"} <= card.keys()
    assert all(p.isfinite().all() for p in module.parameters())
    text = json.dumps(card)
    assert "/root" not in text
    assert "/home" not in text
