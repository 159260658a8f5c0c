import copy
import errno
import hashlib
import io
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

from helpers import batches, budget, files, muon, runs, training
from helpers.runs import Run, TrainingError
from tests import pages

RECIPE = {"steps": 5, "seed": 1, "lr": 0.5, "warmup": 1, "lr_decay": 0.5}


def same(a, b):
    """Whether two states are equal, bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def _states(run):
    return {name: copy.deepcopy(part.state_dict()) for name, part in run.parts.items()}


def _run(folder, settings=None, *, width=1, **changes):
    torch.manual_seed(0)
    net = nn.Linear(2, width)
    optimizer = torch.optim.SGD(net.parameters(), lr=9.0)
    return Run(folder, "run", RECIPE | (settings or {}), net=net, optimizer=optimizer, **changes)


def _train(run, until=None):
    """Every step a loss of 1 and other weights; interrupted in the step `until`."""
    with run:
        for step in run:
            if step == until:
                raise KeyboardInterrupt
            run.parts["net"].weight.data.add_(1)
            run.log(loss=1.0)
    return run


def _stopped(folder, at, settings=None, **changes):
    """A run whose checkpoint stands at this step."""
    run = _run(folder, settings, save_every=1, **changes)
    with pytest.raises(KeyboardInterrupt):
        _train(run, until=at)
    return run


def _rewrite(path, change):
    """Change what a checkpoint holds, under a SHA-256 that is right."""
    state = files.load_tensors(path.read_bytes().partition(b"\n")[2], path.name)
    change(state)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path.write_bytes(hashlib.sha256(buffer.getvalue()).hexdigest().encode() + b"\n" + buffer.getvalue())


# --- the steps --------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("wrong", ["nan", "inf", "-inf"])
def test_a_loss_that_is_not_finite_stops_before_it_is_saved(tmp_path, wrong):
    def train():
        with _run(tmp_path, save_every=2) as run:
            for step in run:
                run.log(loss=torch.tensor(float(wrong) if step == bad else 1.0))

    bad = 4  # the last
    with pytest.raises(TrainingError, match=r"not finite near step 5.*checkpoint of step 4 is intact"):
        train()
    next(tmp_path.glob("*.ckpt")).unlink()
    bad = 2  # not the last before a save
    with pytest.raises(TrainingError, match=r"not finite near step 4.*lower LR"):
        train()
    with _run(tmp_path) as again:
        assert again.done == 2


def test_a_run_that_was_not_begun_or_notes_no_loss_stops_at_once(tmp_path):
    with pytest.raises(TrainingError, match="begin a run by `with Run"):
        next(iter(_run(tmp_path)))
    seen = []
    with pytest.raises(TrainingError, match="log each step's loss"), _run(tmp_path) as run:
        seen.extend(run)
    assert seen == [0]
    with _run(tmp_path, {"a": 2}) as run:
        steps = iter(run)
        next(steps)
        run.log(loss=1.0)
        next(steps)
        run.log(accuracy=1.0)
        with pytest.raises(TrainingError, match="log each step's loss"):  # each, not the first alone, nor another
            next(steps)
    with pytest.raises(TrainingError, match="begin a run by `with Run"):  # nor after its end, when others may train
        next(iter(run))


def test_what_trained_a_run_is_noted_with_it_and_kept_by_a_finished_one(tmp_path):
    for precision in ("bfloat16", "float32"):
        run = _train(_run(tmp_path, about={"precision": precision}))
        assert run.made["precision"] == "bfloat16"


def test_an_interrupt_says_where_the_run_stands(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        _train(_run(tmp_path), until=0)
    assert "Nothing of it was saved yet" in capsys.readouterr().out
    run = _stopped(tmp_path, 4)
    said = capsys.readouterr().out
    assert "up to step 4:" in said
    assert run.path.name in said
    with pytest.raises(KeyboardInterrupt):  # the lock is free
        _train(_run(tmp_path), until=4)
    assert "up to step 4:" in capsys.readouterr().out  # what it found there


@pytest.mark.parametrize(
    "error", [torch.cuda.OutOfMemoryError("CUDA out of memory."),
              RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
              RuntimeError("MPS backend out of memory (MPS allocated: 9 GB, other allocations: 1 GB).")]
)  # fmt: skip
def test_out_of_memory_becomes_advice(tmp_path, error):
    with pytest.raises(TrainingError, match="batch 512: try a batch of 256 or less"), _run(tmp_path, {"batch": 512}):
        raise error
    with pytest.raises(TrainingError, match="at batch 1: close what else"), _run(tmp_path, {"batch": 1}):
        raise error


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
            train, _ = pages.training_loop(number, tmp_path / folder, save_every=2, STEPS=7, BATCH=4)
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


# --- the file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["bit", "truncated", "empty"])
def test_a_damaged_checkpoint_is_refused_left_alone_and_the_run_unlocked(tmp_path, damage):
    path = _stopped(tmp_path, 3).path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    bad = {"bit": bytes(content), "truncated": bytes(content[:-100]), "empty": b""}[damage]
    path.write_bytes(bad)
    for _ in range(2):
        run = _run(tmp_path)
        before = _states(run)
        with pytest.raises(files.DataError, match="damaged.*delete it"), run:
            pass
        assert path.read_bytes() == bad
        assert same(_states(run), before)


def test_a_checkpoint_that_would_run_code_is_not_opened():
    class Evil:
        def __reduce__(self):
            return (pytest.fail, ("code was run",))

    with pytest.raises(files.DataError, match="not a file of plain tensors"):
        files.load_tensors(pickle.dumps(Evil(), protocol=2), "evil.ckpt")


def test_other_settings_are_another_file(tmp_path):
    first = _stopped(tmp_path, 3)
    other = _run(tmp_path, {"a": 2})
    with other:
        assert other.done == 0
    first.path.rename(other.path)
    with pytest.raises(TrainingError, match="other settings"), _run(tmp_path, {"a": 2}):
        pass


def test_a_run_goes_on_with_a_gradscaler_that_it_did_not_begin_with(tmp_path):
    """In bfloat16 at first, then on a card that has float16 only; and the other way round."""
    for first, then in ((False, True), (True, False)):
        scalers = [torch.amp.GradScaler("cpu", init_scale=8.0, enabled=enabled) for enabled in (first, then)]
        for scaler in scalers:
            scaler.scale(torch.ones(1))
        saved = _stopped(tmp_path / str(first), 3, scaler=scalers[0])
        with _run(tmp_path / str(first), scaler=scalers[1]) as resumed:
            assert resumed.done == 3
            assert same(resumed.parts["net"].state_dict(), saved.parts["net"].state_dict())
            assert scalers[1].is_enabled() is then


def test_a_checkpoint_of_another_shape_is_refused_and_changes_nothing(tmp_path):
    def run(width, steps_used):
        torch.manual_seed(width)
        net, limits = nn.Linear(2, 3), budget.Budget(parameters=99, steps=9)
        limits.steps_used = steps_used
        other = nn.Linear(2, width)
        optimizer = muon.Muon(other, 0.1)
        return Run(tmp_path, "run", RECIPE, net=net, limits=limits, optimizer=optimizer, other=other)

    _train(run(3, 5))
    resumed = run(4, 0)
    before = _states(resumed)
    with pytest.raises(TrainingError, match="of another shape or an older version: move it away"), resumed:
        pass
    assert same(_states(resumed), before)  # the net and the budget, too, which had been loaded before one was refused


def test_a_checkpoint_with_other_parts_is_refused(tmp_path):
    _stopped(tmp_path, 3)
    with pytest.raises(TrainingError, match="other settings"), _run(tmp_path, more=nn.Linear(2, 2)):
        pass


@pytest.mark.parametrize("lost", ["step", "history", "settings", "code", "made", "parts"])
def test_a_checkpoint_of_an_older_version_is_said_and_changes_nothing(tmp_path, lost):
    path = _stopped(tmp_path, 3).path
    _rewrite(path, lambda state: state.pop(lost))
    run = _run(tmp_path)
    before = _states(run)
    with pytest.raises(TrainingError, match=r"run-.*\.ckpt is of an older version: move it away"), run:
        pass
    assert same(_states(run), before)
    _rewrite(path, lambda state: state.update(history=torch.zeros(2, 3)))
    with pytest.raises(TrainingError, match="an older version: move it away"), run:
        pass


@pytest.mark.parametrize("lr", [np.sqrt(1e-5), np.linspace(0, 1, 4)[1], np.float32(0.25)])
def test_numpys_numbers_are_read_again_bit_for_bit(tmp_path, lr):
    def train(folder, stops):
        for stop in stops:
            torch.manual_seed(0)
            net = nn.Linear(3, 2)
            optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=np.float64(0.1))
            run = Run(folder, "run", RECIPE | {"lr": lr}, save_every=1, net=net, optimizer=optimizer)
            with run:
                for step in run:
                    optimizer.zero_grad()
                    loss = net(torch.randn(2, 3)).square().sum()
                    loss.backward()
                    optimizer.step()
                    run.log(loss=loss.detach())
                    if step == stop:
                        break
        return run

    whole, parts = train(tmp_path / "a", [None]), train(tmp_path / "b", [2, None])
    assert same(whole.parts["net"].state_dict(), parts.parts["net"].state_dict())
    assert _run(tmp_path, {"lr": float(lr)}).path.name == whole.path.name  # an equal number is the same setting


def test_a_resumed_run_says_when_it_was_made_how_to_train_anew_and_that_the_code_has_changed(
    tmp_path, monkeypatch, capsys
):
    _stopped(tmp_path, 3)
    capsys.readouterr()
    with _run(tmp_path):
        said = capsys.readouterr().out
    pattern = r"run-\w+\.ckpt \(\d{4}-\d\d-\d\d, .* cpu, .*\) goes on after step 3\. To train anew, delete it\."
    assert re.search(pattern, said)
    _train(_run(tmp_path))
    capsys.readouterr()
    monkeypatch.setattr(runs, "_code", lambda: "other")
    with _run(tmp_path):
        pattern = r"is finished; the code in helpers/ has changed since\. To train anew, delete it\."
        assert re.search(pattern, capsys.readouterr().out)


def test_a_failed_save_keeps_the_previous_one(tmp_path, monkeypatch):
    path = _stopped(tmp_path, 3).path

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(files.DataError, match=r"No space left.*free some space"):
            _train(_run(tmp_path, save_every=1))
    with _run(tmp_path) as run:
        assert run.done == 3
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".lock"] == [path.name]


def test_a_folder_one_may_not_write_to_is_named_before_training_begins(tmp_path, monkeypatch):
    (tmp_path / "runs").write_text("a file is in the way")
    with pytest.raises(TrainingError, match="cannot write to .*runs.*set RUNS"), _run(tmp_path / "runs"):
        pass

    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)  # os.mkdir would not do: Python 3.10 has taken it beforehand
    with pytest.raises(TrainingError, match="Read-only file system"), _run(tmp_path / "drive"):
        pass


# --- the lock ---------------------------------------------------------------------------------------------------


def test_two_processes_cannot_train_into_one_file(tmp_path):
    first, later = _run(tmp_path), _run(tmp_path)
    with first:
        held = first.lock  # so that no garbage collector frees it
        with pytest.raises(TrainingError, match="being trained by another notebook"), later:
            pass
        with _run(tmp_path, {"a": 2}):
            pass  # another run in the same folder is welcome
    assert not held.is_locked
    with later:  # free again, though `first` still lives
        assert later.lock.is_locked
        assert first.lock is None


@pytest.mark.skipif(runs.fcntl is None, reason="every file system has locks here")
@pytest.mark.parametrize("reason", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_refuses_nobody(tmp_path, monkeypatch, reason):
    def flock(*_):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(runs.fcntl, "flock", flock)
    run = _run(tmp_path)
    run.path.with_name(f".{run.path.stem}.lock").write_text("12345\nanother-host\n")  # left behind by a killed job
    with run, _run(tmp_path):
        pass


def test_a_run_of_a_compiled_net_goes_on_with_the_plain_one_and_the_other_way_round(tmp_path):
    """Compiled whole, in part, in place or not."""

    def parts(compiled):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        if compiled == "whole":
            net = torch.compile(net, backend="eager")
        elif compiled == "part":
            net[0] = torch.compile(net[0], backend="eager")
        elif compiled == "place":
            net.compile(backend="eager")
        return {"net": net, "ema": training.EMA(net, 0.9), "optimizer": torch.optim.SGD(net.parameters(), 0.1)}

    settings, left = {"steps": 8, "seed": 0, "lr": 0.1, "warmup": 0, "lr_decay": 1.0}, None
    for until, compiled in enumerate(("whole", "", "part", "whole", "place", "part", "")):
        own = parts(compiled)
        with Run(tmp_path, "net", settings, save_every=1, **own) as run:
            assert run.done == until
            if left:
                assert same(left, [training.uncompiled_state(own["net"]), own["ema"].state_dict()])
            for step in run:
                if step > until:
                    break
                own["net"](torch.tensor([[1.0, 2.0], [3.0, 1.0]]))[0].sum().backward()
                own["optimizer"].step()
                own["ema"].update(own["net"])
                run.log(loss=0.0)
        left = copy.deepcopy([training.uncompiled_state(own["net"]), own["ema"].state_dict()])


def test_a_run_that_cannot_resume_frees_its_file_at_once(tmp_path, monkeypatch):
    run, taken = _run(tmp_path), []
    monkeypatch.setattr(Run, "_resume", lambda self: taken.append(self.lock) or 1 / 0)
    with pytest.raises(ZeroDivisionError), run:
        pass
    assert not taken[0].is_locked


def test_a_loss_with_its_gradient_is_logged_as_a_number_and_the_run_resumes(tmp_path):
    """As the docstring of `Run` has it."""
    settings, net = {"steps": 6, "seed": 0, "lr": 0.1, "warmup": 0, "lr_decay": 1.0}, nn.Linear(2, 1)
    for until in (2, 5):
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        with Run(tmp_path, "net", settings, save_every=1, net=net, optimizer=optimizer) as run:
            assert run.done == (2 if until == 5 else 0)
            for step in run:
                loss = net(torch.ones(1, 2)).square().mean()
                loss.backward()
                optimizer.step()
                run.log(loss=loss)
                if step == until:
                    break
        assert not run.history["loss"].requires_grad
        assert run.saved == until  # who leaves the loop loses only the step that he was in


def test_each_precision_that_a_run_was_trained_in_is_noted(tmp_path):
    settings = {"steps": 9, "seed": 0, "lr": 0.1, "warmup": 0, "lr_decay": 1.0}
    for until, precision in ((1, "bfloat16"), (2, "float32"), (3, "float32"), (4, "bfloat16")):
        net = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        about = {"precision": precision}
        with Run(tmp_path, "net", settings, save_every=1, about=about, net=net, optimizer=optimizer) as run:
            for step in run:
                if step == until:
                    break
                run.log(loss=0.0)
    assert run.made["precision"] == "bfloat16, then float32, then bfloat16"


def test_who_leaves_the_loop_early_hears_where_the_run_stands_and_no_half_step_is_saved(tmp_path, capsys):
    """Whether the step's work was done cannot be known: the weights may be of the next step already, or not finite."""
    for until in (1, 3):
        net = nn.Linear(1, 1)
        run = Run(tmp_path, "net", {"steps": 9, "seed": 0, "lr": 0.1, "warmup": 0, "lr_decay": 1.0}, save_every=2,
                  net=net, optimizer=torch.optim.SGD(net.parameters(), 0.1))  # fmt: skip
        with run:
            for step in run:
                run.log(loss=0.0)
                if step == until:
                    nn.init.constant_(net.weight, torch.nan)
                    break
            with pytest.raises(TrainingError, match="left early: begin anew by `with Run"):
                next(iter(run))  # which would do the step twice
        stands = "Nothing of it was saved yet" if until == 1 else "holds the run up to step 2"
        assert f"Left early. {'' if until == 1 else run.path}" in (said := capsys.readouterr().out)
        assert stands in said
    with run:
        assert (run.done, bool(net.weight.isfinite())) == (2, True)


def test_a_slow_run_is_saved_every_five_minutes(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(runs.time, "monotonic", lambda: clock[0])
    saved = []
    with _run(tmp_path, save_every=1_000) as run:
        for _ in run:
            clock[0] += 200.0
            run.log(loss=1.0)
            saved.append(run.saved)
    assert saved[:5] == [0, 0, 2, 2, 4]


def test_the_seconds_of_a_step_are_its_own(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(runs.time, "perf_counter", lambda: clock[0])
    with _run(tmp_path) as run:
        for step in run:
            clock[0] += step + 1
            run.log(loss=1.0)
    assert run.history["seconds"].tolist() == [step + 1 for step in range(run.settings["steps"])]
