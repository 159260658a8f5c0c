from types import SimpleNamespace

import torch

from helpers import live


class Clock:
    """Time and display in place of the page's, for `live`."""

    def __init__(self, monkeypatch):
        self.now, self.shown = 0.0, []
        monkeypatch.setattr(live.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(live, "get_ipython", lambda: SimpleNamespace(execution_count=1))
        monkeypatch.setattr(live, "display", lambda what, display_id: self.shown.append(what) or self)

    def update(self, what):
        self.shown.append(what)


def test_curves_show_themselves_within_seconds_of_the_first_step_and_say_how_long_is_left(monkeypatch):
    clock, show = Clock(monkeypatch), live.Curves(steps=1_000, name="a run:")
    losses = torch.full((1_000,), torch.nan)
    for step, seconds in enumerate([0, 100, 6, 6, 6, 6, 6, 6]):  # the first step compiles
        clock.now += seconds
        losses[: step + 1] = 1.0
        show(step, {"loss": losses})
    said = [figure.get_suptitle() for figure in clock.shown]
    assert said == [f"a run: step {step} of 1,000, about {6 * (1_000 - step) / 60:.0f} min left" for step in (4, 7)]
    clock.now += 1
    show(1_000, {"loss": losses})
    assert clock.shown[-1].data == "a run: 1,000 steps done"


def test_curves_of_a_finished_run_show_nothing_and_those_of_a_resumed_one_count_from_there(monkeypatch):
    clock, finished, resumed = Clock(monkeypatch), live.Curves(steps=10), live.Curves(steps=10_000)
    finished(10, {"loss": torch.ones(10)})
    assert clock.shown == []
    for step in (9_000, 9_001, 9_002):
        resumed(step, {"loss": torch.ones(10_000)})
        clock.now += 60
    assert "about 998 min left" in clock.shown[0].get_suptitle()


def test_a_line_counts_in_place(monkeypatch):
    clock, line = Clock(monkeypatch), live.Line("samples")
    line(250, 1_000)
    line(1_000, 1_000)
    assert [shown.data for shown in clock.shown] == ["samples: 250 of 1,000", "samples: 1,000 of 1,000"]


def test_a_line_that_goes_on_in_another_cell_shows_itself_there(monkeypatch):
    clock, line = Clock(monkeypatch), live.Line("features")
    updated = []
    clock.update = lambda what: updated.append(what.data)
    for cell, done in ((5, 1), (5, 2), (6, 1), (6, 2)):
        monkeypatch.setattr(live, "get_ipython", lambda cell=cell: SimpleNamespace(execution_count=cell))
        line(done, 2)
    assert [shown.data for shown in clock.shown] == ["features: 1 of 2"] * 2
    assert updated == ["features: 2 of 2"] * 2


def test_in_a_script_there_are_words_in_place_of_what_only_a_notebook_can_show(capsys, monkeypatch):
    clock, line, show = Clock(monkeypatch), live.Line("samples"), live.Curves(steps=100, name="a run:")
    monkeypatch.setattr(live, "get_ipython", lambda: None)
    for done in (50, 100):
        line(done, 100)
    assert capsys.readouterr().out == "\rsamples: 50 of 100\rsamples: 100 of 100\n"
    for step in (0, 1, 2, 100):
        clock.now += 60
        show(step, {"loss": torch.ones(100)})
    assert capsys.readouterr().out.splitlines() == ["a run: step 2 of 100, about 98 min left", "a run: 100 steps done"]
    assert clock.shown == []
