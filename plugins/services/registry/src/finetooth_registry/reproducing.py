"""Trains a recorded run again and compares conditions, numbers by step, and files of the artifact."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetooth_hooks.errors import UserError
from finetooth_saving.artifact import verify_folder
from finetooth_saving.run_folder import ARTIFACT, RECIPE, artifact_of, as_decided, plan_of, started_in
from finetooth_saving.runs.recorded import read_run

from finetooth_registry import locking

if TYPE_CHECKING:
    from finetooth_hooks import CommandContext

CONDITIONS = ("base_digest", "data", "plugins", "environment")
"""Keys of a manifest with the conditions of its run."""


@dataclass(frozen=True)
class Difference:
    """A difference from the record.

    Attributes:
        what: `environment.torch`, `step 3: loss` or a file of the artifact.
        recorded, now: both values, as text; empty where there is none.
        counts: the run is not reproduced. Conditions do not count, only results.
    """

    what: str
    recorded: str
    now: str
    counts: bool


def train_again(
    commands: CommandContext, recorded: Path, output: Path, tell: Callable[[Difference], None] = lambda changed: None
) -> Path:
    """Train the recipe of a run, with its plan's decisions, into another folder.

    Args:
        recorded: folder of the run. Relative paths in its recipe are of the folder in which it was started.
        output: must not exist.
        tell: called before training with differences of the base or the data.

    Raises:
        UserError: the folder exists, or the run kept no artifact or a damaged one.
        RecipeError: the recipe cannot be trained here.
    """
    recorded, output = recorded.absolute(), output.absolute()
    if output.exists():
        raise UserError(f"{output} exists", action="choose another folder with --output")
    artifact_of(recorded)
    place = started_in(recorded)
    with chdir(place) if place is not None and place.is_dir() else nullcontext():
        recipe = as_decided(dict(commands.load(recorded / RECIPE)), plan_of(recorded))
        recipe = {name: value for name, value in recipe.items() if name != "export"}
        for changed in (*environment(recorded), *_changed(commands, recipe, verify_folder(recorded / ARTIFACT))):
            tell(changed)
        outcome = commands.run({**recipe, "output": str(output)})
    if outcome.artifact is None:
        raise UserError(
            f"the new run saved no artifact: it {outcome.status}: {outcome.reason}", action="mend what its line names"
        )
    return output


def _changed(commands: CommandContext, recipe: Mapping[str, Any], recorded: Mapping[str, Any]) -> Iterator[Difference]:
    """Differences of a recipe's base and data from a manifest."""
    now = {decision.setting: str(decision.value) for decision in commands.plan(recipe).decisions}
    now["base_digest"] = commands.context(recipe).model.digest
    before = {**_flat("data", recorded.get("data")), **_flat("base_digest", recorded.get("base_digest"))}
    for name, was in before.items():
        what = name.removeprefix("data.")
        if was != now.get(what, ""):
            yield Difference(what, was, now.get(what, ""), counts=False)


def environment(recorded: Path) -> Iterator[Difference]:
    """Installed distributions whose versions differ from a run's lock file; empty without one."""
    file = recorded / locking.LOCK
    if file.is_file():
        before = locking.read(file.read_text(encoding="utf-8"), str(file))
        for name, (was, now) in locking.differing(before, locking.installed()).items():
            yield Difference(f"installed.{name}", was, now, counts=False)


def differences(recorded: Path, again: Path, tolerance: float = 0.0) -> Iterator[Difference]:
    """Differences between two runs of one recipe: conditions first, then numbers by step, then files.

    Args:
        recorded, again: folders of the runs.
        tolerance: allowed relative difference of a number. 0: all numbers and files must be bit-identical. Above 0
            losses and evaluations decide, and files of weights are not compared.
    """
    before, now = verify_folder(recorded / ARTIFACT), verify_folder(again / ARTIFACT)
    for part in CONDITIONS:
        old, new = _flat(part, before.get(part)), _flat(part, now.get(part))
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                yield Difference(name, old.get(name, ""), new.get(name, ""), counts=False)
    yield from environment(recorded)
    yield from _numbers(recorded, again, tolerance)
    if tolerance == 0:
        files, others = before.get("files", {}), now.get("files", {})
        for name in sorted(files.keys() | others.keys()):
            was, got = (str((listing.get(name) or {}).get("sha256", "")) for listing in (files, others))
            if was != got:
                yield Difference(name, was[:12], got[:12], counts=True)


def _numbers(recorded: Path, again: Path, tolerance: float) -> Iterator[Difference]:
    """Losses, norms of gradients and evaluations that differ, the earliest step first."""
    before, now = _points(recorded), _points(again)
    for step, name in sorted(before.keys() | now.keys()):
        was, new = before.get((step, name)), now.get((step, name))
        if was is None or new is None or not math.isclose(was, new, rel_tol=tolerance, abs_tol=0.0):
            yield Difference(f"step {step}: {name}", _text(was), _text(new), counts=True)


def _points(run: Path) -> dict[tuple[int, str], float]:
    """Recorded values by step and name. A run without `metrics.jsonl` has none."""
    series = read_run(run).series()
    return {
        (step, name): value
        for name, points in series.items()
        if name in ("loss", "grad_norm") or name.startswith("eval/")
        for step, value in points
    }


def _flat(name: str, value: Any) -> dict[str, str]:
    if isinstance(value, Mapping):
        return {f"{name}.{inner}": str(each) for inner, each in value.items()}
    return {name: str(value)} if value else {}


def _text(value: float | None) -> str:
    return "" if value is None else repr(value)
