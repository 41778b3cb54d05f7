"""A run loop with an engine that counts."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from finetooth_core.plugins.events import Events, Progress
from finetooth_core.plugins.trackers import PickedTracker
from finetooth_core.running.loop import Loop
from finetooth_hooks import (
    Evaluation,
    MemoryEstimate,
    Plan,
    StepReport,
)
from finetooth_hooks.bases import EngineBase, EvaluatorBase, MethodBase, TrackerBase
from finetooth_hooks.reports import DataReport, Prepared
from finetooth_recipes.cadence import Cadence
from finetooth_saving.early_stopping import EarlyStopping
from finetooth_saving.found_checkpoints import read
from finetooth_saving.keeper import Keeper, Keeping
from finetooth_saving.retention import Best, mode_of
from finetooth_saving.run_state import Resumed


class CountingEngine(EngineBase):
    """Writes what it was asked for; has no weights."""

    weights_version = 0
    accumulated = 0
    capabilities = frozenset({"zero_grad"})

    def zero_grad(self) -> None:
        self.accumulated = 0

    def export(self, path: Path) -> None:
        (path / "weights.txt").write_text("trained")

    def save(self, path: Path) -> None:
        path.mkdir()
        (path / "state.txt").write_text(f"state with {self.accumulated} gradients")

    def load(self, path: Path) -> None:
        self.loaded = path


@dataclass
class CountingMethod(MethodBase):
    """Yields `total` steps; `at` may raise or signal at a step."""

    total: int = 4
    at: dict[int, Any] = field(default_factory=dict)
    done: int = 0

    def steps(self, engine: Any) -> Iterator[StepReport]:
        while self.done < self.total:
            action = self.at.get(self.done + 1)
            if isinstance(action, BaseException):
                raise action
            if callable(action):
                action()
            self.done += 1
            yield StepReport(self.done, self.done / 4, 1.0 / self.done, 8, 4, 2, 1e-3, 0.5)

    def state(self) -> dict[str, Any]:
        return {"done": self.done}

    def restore(self, state: Any) -> None:
        self.done = state["done"]


@dataclass
class Drawing(CountingMethod):
    """Draws from the global generators in every step, as plugins of others do."""

    drawn: list[tuple[float, float]] = field(default_factory=list)

    def steps(self, engine: Any) -> Iterator[StepReport]:
        while self.done < self.total:
            self.drawn.append((random.random(), float(np.random.random())))  # noqa: NPY002, RUF100 - the subject
            if callable(action := self.at.get(self.done + 1)):
                action()
            self.done += 1
            yield StepReport(self.done, self.done / 4, 1.0 / self.done, 8, 4, 2, 1e-3, 0.5)


@dataclass
class Watching:
    """A schedule that remembers what it was shown."""

    seen: list[Any] = field(default_factory=list)

    def observe(self, metrics: Any) -> None:
        self.seen.append(metrics)


class Score(EvaluatorBase):
    """An evaluator that scores the step number."""

    def evaluate(self, engine: Any, step: int) -> Evaluation:
        return Evaluation("score", step, {"score": float(step % 3)}, higher_is_better=True)


@dataclass
class Listener:
    """A tracker and an event plugin in one: remembers what it was told."""

    named_by_user: bool = True
    raises: dict[str, BaseException] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    name: str = "listener"
    options: Any = None

    def call(self, hook: str, **arguments: Any) -> None:
        self.told.append(hook)
        if hook in self.raises:
            raise self.raises[hook]
        if hook == "ft_step":
            arguments["run"].state["seen"] = arguments["report"].step


@dataclass
class Counting(TrackerBase):
    """A tracker that counts steps in its state."""

    fails_at_the_end: bool = False

    def start(self, run: Any) -> None: ...

    def step(self, run: Any, report: StepReport) -> None:
        run.state["steps"] = run.state.get("steps", 0) + 1

    def evaluated(self, run: Any, evaluation: Evaluation) -> None: ...

    def end(self, run: Any, outcome: Any) -> None:
        if self.fails_at_the_end:
            raise OSError(28, "No space left on device")


@dataclass
class Folders:
    """A store of the tier disk that only renames."""

    root: Path

    @property
    def place(self) -> str:
        return str(self.root)

    def names(self) -> list[str]:
        return [path.name for path in self.root.glob("step-*")]

    def manifest(self, name: str) -> bytes:
        return (self.root / name / "manifest.json").read_bytes()

    def put(self, name: str, folder: Path) -> None:
        folder.rename(self.root / name)

    def fetch(self, name: str, folder: Path) -> None:
        raise NotImplementedError

    def remove(self, name: str) -> None:
        shutil.rmtree(self.root / name)


MODEL = SimpleNamespace(contents={}, digest="")
"""A base of no file."""


def make(
    tmp_path: Path, method: CountingMethod, *listeners: Listener, before: bool = True, every: int | str = 0,
    save: int = 0, best: str | None = None, trackers: tuple[PickedTracker, ...] = (),
    stopping: EarlyStopping | None = None, wait_for_room: float = 0.0,
) -> Loop:  # fmt: skip
    recipe = SimpleNamespace(
        evaluate=SimpleNamespace(before=before, every=every),
        checkpoint=SimpleNamespace(select_on=best, wait_for_room=wait_for_room),
        train=SimpleNamespace(on_bad_step="stop", early_stopping=stopping),
        profile=SimpleNamespace(start=5, steps=0),
    )
    context = SimpleNamespace(
        recipe=recipe,
        data=SimpleNamespace(has=lambda split: False),
        folder=tmp_path,
        generator=lambda key: np.random.default_rng(0),
        awaited={},
    )
    plan = Plan({}, {}, {}, None, (), MemoryEstimate({}), 4, "hash")  # type: ignore[arg-type]
    job = SimpleNamespace(
        context=context,
        plan=plan,
        evaluators=(Score(),),
        trackers=trackers,
        request=SimpleNamespace(
            updates=SimpleNamespace(schedule=Watching()),
            base=SimpleNamespace(model=MODEL),
            place=SimpleNamespace(collective=None),
        ),
        reports=(),
        prepared=Prepared(4, 4, DataReport("train", 8, 8)),
    )
    progress = Progress("run", tmp_path, plan, 4)
    said: list[str] = []
    events = Events(tuple(listeners), progress, said.append)  # type: ignore[arg-type]
    chosen = None if best is None else Best(1, best, mode_of(best))
    keeping = Keeping(
        tmp_path / "checkpoints", Cadence(steps=save), best=chosen, disk=Folders(tmp_path / "checkpoints")
    )
    keeper = Keeper(keeping, {"plan.json": "{}\n", "recipe.yaml": "{}\n"}, events.objection, said.append)
    loop = Loop(job, method, CountingEngine(), events, progress, {"model": "toy"}, said.append, keeper)  # type: ignore[arg-type]
    loop.said = said  # type: ignore[attr-defined]
    return loop


def resumed(tmp_path: Path, step: int, *listeners: Listener, **how: Any) -> Loop:
    """The run, in another process, from its checkpoint after a step."""
    loop = make(tmp_path, CountingMethod(), *listeners, **how)
    loop.go_on(read(tmp_path / "checkpoints" / f"step-{step}"), Resumed(step))
    return loop


def states(folder: Path) -> dict[str, Any]:
    """The states of all checkpoints, without what no two runs share."""
    found = {path.parent.name: json.loads(path.read_text()) for path in (folder / "checkpoints").glob("*/state.json")}
    return {name: {k: v for k, v in one.items() if k not in ("seconds", "resumed")} for name, one in found.items()}


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """What loops are made of, and what runs leave."""
    return SimpleNamespace(
        Method=CountingMethod, Engine=CountingEngine, Score=Score, Listener=Listener, Counting=Counting,
        Drawing=Drawing, make=make, resumed=resumed, states=states, result=result,
    )  # fmt: skip
