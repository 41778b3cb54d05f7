"""The `profile` section: which steps are recorded, what is refused, what is said."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_core.planning.driven import check_profile
from finetooth_core.running.recording import Recorder
from finetooth_core.settings.recipe import load
from finetooth_hooks import PlanError, RecipeError
from finetooth_hooks.bases import EngineBase


class RecordingEngine(EngineBase):
    """Notes what is recorded."""

    capabilities = frozenset({"profile"})

    def __init__(self, fails: bool = False) -> None:
        self.noted: list[str] = []
        self.fails = fails

    @contextmanager
    def profile(self, folder: Path) -> Iterator[RecordingEngine]:
        self.noted.append("begin")
        yield self
        self.noted.append("end")
        if self.fails:
            raise OSError(28, "No space left on device")

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        self.noted.append(name)
        yield


def drive(start: int, steps: int, done: int, engine: Any = None) -> tuple[list[str], list[str]]:
    """A run of `done` steps as the loop drives it; what was recorded and what was said."""
    engine, said = engine or RecordingEngine(), []
    recorder = Recorder(engine, start, steps, Path("run"), said.append)
    for step in range(1, done + 1):
        recorder.before(step)
        with recorder.span(f"step {step}"):
            pass
        recorder.after(step)
    recorder.before(done + 1)
    recorder.close(done)
    return getattr(engine, "noted", []), said


def test_only_the_steps_named_are_recorded() -> None:
    noted, said = drive(3, 2, 6)
    assert noted == ["begin", "step 3", "step 4", "end"]
    assert said == ["profile: steps 3 to 4 recorded; see run/profile/table.md"]
    assert drive(2, 1, 4)[1] == ["profile: step 2 recorded; see run/profile/table.md"]


def test_off_is_off() -> None:
    assert drive(3, 0, 6) == ([], [])
    assert drive(1, 2, 3, EngineBase()) == ([], [])  # an engine that cannot: the plan has refused it


def test_a_run_that_ends_early_says_what_is_missing() -> None:
    noted, said = drive(3, 4, 4)
    assert noted == ["begin", "step 3", "step 4", "end"]
    assert said == ["profile: steps 3 to 4 recorded, not 3 to 6: the run ended; see run/profile/table.md"]
    noted, said = drive(5, 2, 2)
    assert noted == []
    assert said == ["profile: nothing was recorded, the run ended after step 2, before step 5"]


def test_a_recording_that_cannot_be_written_does_not_end_the_run() -> None:
    noted, said = drive(1, 1, 3, RecordingEngine(fails=True))
    assert noted == ["begin", "step 1", "end"]
    assert said == ["profile: it could not be written: OSError: [Errno 28] No space left on device"]


@pytest.mark.parametrize(
    ("profile", "problem"),
    [
        ({"steps": -1}, r"profile\.steps: must be at least 0, got -1"),
        ({"start": 0, "steps": 1}, r"profile\.start: must be at least 1, got 0"),
        ({"start": 3}, r"profile: 'start' is set but not how many steps to record \(add profile\.steps, such as 3\)"),
        ({"stepps": 3}, r"profile\.stepps: unknown setting \(did you mean profile\.steps\?\)"),
        ({"steps": 1.5}, r"profile\.steps: expected a whole number"),
        (True, r"profile: "),
    ],
)
def test_bad_values_are_refused(profile: Any, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        load({"model": "m", "profile": profile})


def test_the_section() -> None:
    assert load({"model": "m"}).profile.steps == 0
    section = load({"model": "m", "profile": {"start": 5, "steps": 3}}).profile
    assert (section.start, section.steps) == (5, 3)
    assert load({"model": "m"}, ["profile.steps=2"]).profile.start == 5


def check(start: int, steps: int, total: int | None, *capabilities: str) -> list[str]:
    notes: list[str] = []
    recipe = SimpleNamespace(profile=SimpleNamespace(start=start, steps=steps))
    context: Any = SimpleNamespace(recipe=recipe, note=notes.append)
    backend: Any = SimpleNamespace(name="toy", capabilities=frozenset(capabilities))
    check_profile(context, backend, total)
    return notes


def test_the_plan_refuses_what_would_never_be_recorded_and_says_what_will_be_cut() -> None:
    assert check(5, 3, 7, "profile") == []
    assert check(5, 3, None, "profile") == []
    assert check(99, 0, 7) == []
    with pytest.raises(RecipeError, match=r"profile\.start: it is 8, and the run ends after 7 steps: nothing"):
        check(8, 1, 7, "profile")
    with pytest.raises(PlanError, match="backend toy cannot record its steps"):
        check(1, 1, 7, "generate")
    assert check(5, 3, 6, "profile") == [
        "profile: steps 5 to 6 will be recorded, not 5 to 7: the run ends after 6 steps"
    ]
    assert check(1, 3, 1, "profile") == ["profile: step 1 will be recorded, not 1 to 3: the run ends after 1 step"]
