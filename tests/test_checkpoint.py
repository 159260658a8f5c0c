import copy
import hashlib
import io
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from helpers import batches, budget, checkpoint, files, muon, training
from helpers.checkpoint import Checkpoint, TrainingError
from tests.test_training import same

CPU = torch.device("cpu")


def _checkpoint(folder, settings=None):
    return Checkpoint(folder, "run", settings or {"a": 1}, net=nn.Linear(2, 2))


def test_nothing_there_means_a_fresh_start(tmp_path):
    assert _checkpoint(tmp_path).resume() == (0, {})


@pytest.mark.parametrize("damage", ["bit", "truncated", "empty"])
def test_damaged_checkpoint_is_refused_and_left_alone(tmp_path, damage):
    checkpoint = _checkpoint(tmp_path)
    checkpoint.save(5, {}, CPU)
    content = bytearray(checkpoint.path.read_bytes())
    content[len(content) // 2] ^= 1
    bad = {"bit": bytes(content), "truncated": bytes(content[:-100]), "empty": b""}[damage]
    checkpoint.path.write_bytes(bad)
    before = checkpoint.parts["net"].weight.detach().clone()
    with pytest.raises(files.DataError, match="damaged.*delete it"):
        checkpoint.resume()
    assert checkpoint.path.read_bytes() == bad
    assert torch.equal(checkpoint.parts["net"].weight, before)


def test_a_checkpoint_that_would_run_code_is_not_opened(tmp_path):
    class Evil:
        def __reduce__(self):
            return (pytest.fail, ("code was run",))

    with pytest.raises(files.DataError, match="not a file of plain tensors"):
        files.load_tensors(pickle.dumps(Evil(), protocol=2), "evil.ckpt")


def test_other_settings_are_another_file(tmp_path):
    _checkpoint(tmp_path, {"a": 1}).save(5, {}, CPU)
    assert _checkpoint(tmp_path, {"a": 2}).resume() == (0, {})
    other = _checkpoint(tmp_path, {"a": 2})
    _checkpoint(tmp_path, {"a": 1}).path.rename(other.path)
    with pytest.raises(TrainingError, match="other settings"):
        other.resume()


def test_a_run_goes_on_with_a_gradscaler_that_it_did_not_begin_with(tmp_path):
    """In bfloat16 at first, then on a card that has float16 only; and the other way round."""
    for first, then in ((False, True), (True, False)):
        folder = tmp_path / str(first)
        scalers = [torch.amp.GradScaler("cpu", init_scale=8.0, enabled=enabled) for enabled in (first, then)]
        for scaler in scalers:
            scaler.scale(torch.ones(1))
        saved = Checkpoint(folder, "run", {}, scaler=scalers[0], net=nn.Linear(2, 2))
        saved.save(3, {}, CPU)
        resumed = Checkpoint(folder, "run", {}, scaler=scalers[1], net=nn.Linear(2, 2))
        assert resumed.resume()[0] == 3
        assert same(resumed.parts["net"].state_dict(), saved.parts["net"].state_dict())
        assert scalers[1].is_enabled() is then


def test_a_checkpoint_of_another_shape_is_refused_and_changes_nothing(tmp_path):
    def parts(width):
        net = nn.Linear(2, width)
        return {"limits": budget.Budget(parameters=99, steps=9), "optimizer": muon.Muon(net, 0.1), "net": net}

    saved = Checkpoint(tmp_path, "run", {}, **parts(3))
    saved.parts["limits"].steps_used = 5
    saved.save(5, {}, CPU)
    resumed = Checkpoint(tmp_path, "run", {}, **parts(4))
    before = {name: copy.deepcopy(part.state_dict()) for name, part in resumed.parts.items()}
    with pytest.raises(TrainingError, match="of another shape or an older version: move it away"):
        resumed.resume()
    assert same(before, {name: part.state_dict() for name, part in resumed.parts.items()})


def test_a_checkpoint_of_an_older_version_is_refused(tmp_path):
    old = _checkpoint(tmp_path)
    old.save(5, {}, CPU)
    state = files.load_tensors(old.path.read_bytes().partition(b"\n")[2], "old") | {"history": torch.zeros(2, 3)}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    old.path.write_bytes(digest.encode() + b"\n" + buffer.getvalue())
    with pytest.raises(TrainingError, match="an older version: move it away"):
        _checkpoint(tmp_path).resume()


@pytest.mark.parametrize("lr", [np.sqrt(1e-5), np.linspace(0, 1, 4)[1], np.float32(0.25)])
def test_numpys_numbers_are_read_again_bit_for_bit(tmp_path, lr):
    def run(folder, stops):
        for stop in stops:
            torch.manual_seed(0)
            net = nn.Linear(3, 2)
            optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=np.float64(0.1))
            checkpoint = Checkpoint(folder, "run", {"lr": lr}, net=net, optimizer=optimizer)
            for step in range(checkpoint.resume()[0], stop):
                batches.seed_step(0, step)
                training.set_lr(optimizer, lr * training.lr_factor(step, 4))
                optimizer.zero_grad()
                net(torch.randn(2, 3)).square().sum().backward()
                optimizer.step()
            checkpoint.save(stop, {}, CPU)
        return checkpoint

    whole, parts = run(tmp_path / "a", [4]), run(tmp_path / "b", [1, 4])
    assert same(whole.parts["net"].state_dict(), parts.parts["net"].state_dict())
    plain = Checkpoint(tmp_path, "run", {"lr": float(lr)})
    assert plain.path.name == whole.path.name  # an equal number is the same setting


def test_a_resumed_run_says_when_it_was_made_how_to_train_anew_and_that_the_code_has_changed(
    tmp_path, monkeypatch, capsys
):
    _checkpoint(tmp_path).save(7, {}, CPU)
    _checkpoint(tmp_path).resume()
    said = capsys.readouterr().out
    pattern = r"run-\w+\.ckpt \(\d{4}-\d\d-\d\d, .* cpu, .*\) goes on after step 7\. To train anew, delete it\."
    assert re.search(pattern, said)
    finished = Checkpoint(tmp_path, "whole", {"steps": 7}, net=nn.Linear(2, 2))
    finished.save(7, {}, CPU)
    finished.resume()
    assert re.search(r"whole-\w+\.ckpt \(.*\) is finished\. To train anew, delete it\.", capsys.readouterr().out)
    monkeypatch.setattr(checkpoint, "_code", lambda: "other")
    _checkpoint(tmp_path).resume()
    assert "the code in helpers/ has changed since" in capsys.readouterr().out


@pytest.mark.parametrize("lost", ["step", "history", "settings", "code", "made", "parts"])
def test_a_checkpoint_of_an_older_version_is_said_and_changes_nothing(tmp_path, lost):
    checkpoint = _checkpoint(tmp_path)
    checkpoint.save(7, {}, CPU)
    state = torch.load(io.BytesIO(checkpoint.path.read_bytes().partition(b"\n")[2]))
    del state[lost]
    buffer = io.BytesIO()
    torch.save(state, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest().encode()
    checkpoint.path.write_bytes(digest + b"\n" + buffer.getvalue())
    other = _checkpoint(tmp_path)
    before = copy.deepcopy({name: part.state_dict() for name, part in other.parts.items()})
    with pytest.raises(TrainingError, match=r"run-.*\.ckpt is of an older version: move it away"):
        other.resume()
    assert same({name: part.state_dict() for name, part in other.parts.items()}, before)


def test_a_home_folder_is_a_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    with Checkpoint("~/runs", "run", {}, net=nn.Linear(2, 2)) as checkpoint:
        checkpoint.save(1, {}, CPU)
    assert [path.suffix for path in (tmp_path / "runs").glob("[!.]*")] == [".ckpt"]


def test_a_failed_save_keeps_the_previous_one(tmp_path, monkeypatch):
    checkpoint = _checkpoint(tmp_path)
    checkpoint.save(5, {}, CPU)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(files.DataError, match=r"No space left.*free some space"):
        checkpoint.save(6, {}, CPU)
    assert _checkpoint(tmp_path).resume()[0] == 5
    assert [p.name for p in tmp_path.iterdir()] == [checkpoint.path.name]


def test_a_folder_one_may_not_write_to_is_named_before_training_begins(tmp_path, monkeypatch):
    (tmp_path / "runs").write_text("a file is in the way")
    with (
        pytest.raises(TrainingError, match="cannot write to .*runs.*set RUNS"),
        _checkpoint(tmp_path / "runs"),
    ):
        pass

    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)  # os.mkdir would not do: Python 3.10 has taken it beforehand
    with pytest.raises(TrainingError, match="Read-only file system"), _checkpoint(tmp_path / "drive"):
        pass


def test_two_processes_cannot_train_into_one_file(tmp_path):
    with _checkpoint(tmp_path) as first:
        first.save(5, {}, CPU)
        with pytest.raises(TrainingError, match="another notebook"), _checkpoint(tmp_path):
            pass
        with _checkpoint(tmp_path, {"a": 2}):
            pass  # another run in the same folder is welcome
    with _checkpoint(tmp_path) as second:
        assert second.resume()[0] == 5


def test_an_interrupt_says_where_the_run_stands(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt), _checkpoint(tmp_path):
        raise KeyboardInterrupt
    assert "Nothing of it was saved yet" in capsys.readouterr().out
    checkpoint = _checkpoint(tmp_path)
    checkpoint.save(1500, {}, CPU)
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
        pytest.raises(TrainingError, match="batch 512.*set BATCH to 256"),
        _checkpoint(tmp_path, {"batch": 512}),
    ):
        raise error
