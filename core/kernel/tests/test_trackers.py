"""Trackers of a run: their states, and what becomes of those that fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_core.planning.driven import _trackers
from finetooth_core.plugins.events import PluginFailed, Progress
from finetooth_core.plugins.trackers import PickedTracker, Trackers
from finetooth_hooks import MemoryEstimate, Outcome, Plan, StepReport, StopRun, TrackerBase, UserError
from finetooth_toolbox import blame

PLAN = Plan({}, {}, {}, None, (), MemoryEstimate({}), 4, "hash")  # type: ignore[arg-type]
OUTCOME = Outcome("done", 0, "", 1, {}, {}, None, "hash", 1.0)
OFFLINE = ConnectionRefusedError(111, "Connection refused")


@dataclass
class Told(TrackerBase):
    """Remembers what it was told and counts steps in its state; raises what it is given."""

    capabilities = frozenset({"resume"})
    raises: dict[str, Exception] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    seen: list[Any] = field(default_factory=list)

    def _note(self, what: str) -> None:
        self.told.append(what)
        if what in self.raises:
            raise self.raises[what]

    def start(self, run: Any) -> None:
        run.state["begun"] = True
        self._note("start")

    def resume(self, run: Any, history: Any) -> None:
        self.seen.append(dict(run.state))
        run.state["steps"] = 0
        self._note("resume")

    def step(self, run: Any, report: StepReport) -> None:
        run.state["steps"] = run.state.get("steps", 0) + 1
        self._note("step")

    def evaluated(self, run: Any, evaluation: Any) -> None:
        self._note("evaluated")

    def end(self, run: Any, outcome: Outcome) -> None:
        self._note("end")


@pytest.fixture(autouse=True)
def a_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written here counts as a plugin's."""
    monkeypatch.setitem(blame._owners, __name__, "acme 1.2")


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., tuple[Trackers, list[str]]]:
    def make(*trackers: Told, named: bool = False) -> tuple[Trackers, list[str]]:
        warned: list[str] = []
        picked = [PickedTracker(f"acme:t{place}", tracker, named) for place, tracker in enumerate(trackers)]
        return Trackers(picked, Progress("run", tmp_path, PLAN, 4), warned.append), warned

    return make


def report(step: int = 1) -> StepReport:
    return StepReport(step, 0.5, 1.0, 8, 4, 2, 1e-3, 0.5)


@pytest.mark.parametrize("where", ["start", "step", "end"])
def test_one_that_nobody_named_is_told_of_once_and_not_called_again(made: Any, where: str) -> None:
    failing, other = Told(raises={where: OFFLINE}), Told()
    trackers, warned = made(failing, other)
    trackers.begin(None)
    trackers.step(report(1))
    trackers.step(report(2))
    trackers.end(OUTCOME)
    said = f"tracker acme:t0 failed in {where}: ConnectionRefusedError: [Errno 111] Connection refused"
    assert len(warned) == 1 and warned[0].startswith(f"{said} [")
    assert warned[0].endswith("]; it is not called again in this run") and f"[{__file__}:" in warned[0]
    assert failing.told[-1] == where and failing.told.count(where) == 1
    assert other.told == ["start", "step", "step", "end"]


@pytest.mark.parametrize("where", ["start", "step", "end"])
def test_one_that_the_user_named_ends_the_run_and_is_named(made: Any, where: str) -> None:
    failing, other = Told(raises={where: OFFLINE}), Told()
    trackers, warned = made(failing, other, named=True)

    def run() -> None:
        trackers.begin(None)
        trackers.step(report())
        trackers.end(OUTCOME)

    with pytest.raises(PluginFailed, match=f"tracker acme:t0 failed in {where}: ConnectionRefusedError") as caught:
        run()
    assert caught.value.exit_code == 1 and "take it out of trackers" in str(caught.value)
    assert caught.value.__cause__ is OFFLINE and warned == []
    assert (other.told[-1:] == ["end"]) is (where == "end")  # all are told how it ended


def test_what_it_says_to_the_user_itself_stays(made: Any) -> None:
    trackers, _ = made(Told(raises={"start": UserError("no such project", action="make it")}), named=True)
    with pytest.raises(UserError) as caught:
        trackers.begin(None)
    assert str(caught.value) == "no such project (make it)"


def picked(trackers: Any, notes: list[str], broken: str = "") -> list[tuple[str, bool]]:
    """Names of the trackers of a recipe, and whether the user named each.

    Args:
        broken: the one whose builder raises.
    """
    entries = {
        name: SimpleNamespace(full_name=name, distribution=name.partition(":")[0], entry=SimpleNamespace(default=True))
        for name in ("mine.py:a", "installed:b")
    }

    def build(registered: Any, pick: str, setting: str) -> Any:
        if pick == broken:
            raise ConnectionRefusedError(111, "no server\nanswers")
        return SimpleNamespace(registered=registered, part=Told())

    loaded = [SimpleNamespace(distribution=d, named_by_user=d == "mine.py") for d in ("mine.py", "installed")]
    context: Any = SimpleNamespace(
        recipe=SimpleNamespace(trackers=trackers),
        catalog=SimpleNamespace(all=lambda kind: list(entries.values())),
        plugins=SimpleNamespace(loaded=loaded),
        decide=lambda *said: None,
        note=notes.append,
        log=SimpleNamespace(pick=lambda *said: None),
        builder=SimpleNamespace(entry=lambda kind, pick, setting: entries[pick], built=build),
    )
    return [(one.name, one.named_by_user) for one in _trackers(context)]


def test_who_named_it() -> None:
    """A recipe that lists trackers names them; what is there by default is named with its plugin, or by nobody."""
    assert picked("auto", []) == [("mine.py:a", True), ("installed:b", False)]
    twice = [("installed:b", True), ("installed:b#2", True)]
    assert picked(["installed:b", "installed:b"], []) == twice


def test_one_that_nobody_named_and_cannot_be_built_is_told_of_and_left_out() -> None:
    notes: list[str] = []
    assert picked("auto", notes, broken="installed:b") == [("mine.py:a", True)]
    assert len(notes) == 1 and "\n" not in notes[0]
    said = "tracker installed:b cannot be built: ConnectionRefusedError: [Errno 111] no server answers"
    assert notes[0].startswith(f"{said} [{__file__}:") and notes[0].endswith("this run continues without it")


@pytest.mark.parametrize(("trackers", "broken"), [("auto", "mine.py:a"), (["installed:b"], "installed:b")])
def test_one_that_the_user_named_and_cannot_be_built_ends_the_run(trackers: Any, broken: str) -> None:
    with pytest.raises(ConnectionRefusedError):
        picked(trackers, [], broken=broken)


@pytest.mark.parametrize("named", [True, False])
def test_it_may_end_the_run(made: Any, named: bool) -> None:
    trackers, warned = made(Told(raises={"step": StopRun("the budget is spent", 5)}), named=named)
    trackers.begin(None)
    with pytest.raises(StopRun, match="the budget is spent"):
        trackers.step(report())
    assert warned == []


def test_its_state_is_its_own_and_comes_back(made: Any) -> None:
    trackers, _ = made(Told(), Told())
    trackers.begin(None)
    trackers.step(report())
    states = trackers.state()
    assert states == {f"tracker:acme:t{place}": {"begun": True, "steps": 1} for place in (0, 1)}
    states["tracker:acme:t0"]["steps"] = 7
    first, second = Told(), Told()
    again, _ = made(first, second)
    again.restore(states)
    again.begin([report()])
    assert [one.seen[0]["steps"] for one in (first, second)] == [7, 1]  # there before `resume`
    assert again.state()["tracker:acme:t0"]["steps"] == 7  # what it sets as it begins does not undo it


@pytest.mark.parametrize("named", [True, False])
def test_a_state_that_json_cannot_keep(made: Any, named: bool) -> None:
    class Forgetful(Told):
        def step(self, run: Any, report: StepReport) -> None:
            run.state["seen"] = {1, 2}

    trackers, warned = made(Forgetful(), named=named)
    trackers.begin(None)
    trackers.step(report())
    if named:
        with pytest.raises(PluginFailed, match=r"tracker acme:t0: run.state\['seen'\] is \{1, 2\}"):
            trackers.state()
    else:
        assert trackers.state() == {} and len(warned) == 1 and "run.state['seen']" in warned[0]
