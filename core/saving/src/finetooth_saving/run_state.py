"""The state of a run between two steps: everything that affects its continuation, without the engine's state."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks.errors import UserError

from finetooth_saving import state_arrays
from finetooth_saving.artifact import write_json
from finetooth_saving.history import plain, unplain

FILE = "state.json"
FORMAT = 2


@dataclass(frozen=True)
class BadStep:
    """A step whose loss or gradient was not finite.

    Attributes:
        step: the number it would have had.
        reason: what was not finite.
        rows: ids of its data, as far as known.
        policy: the reaction, `skip` or `rollback`.
        back_to: the step of the restored weights and optimizer.
    """

    step: int
    reason: str
    rows: tuple[str, ...]
    policy: str
    back_to: int


@dataclass(frozen=True)
class Resumed:
    """A resume of a run.

    Attributes:
        step: the step after which it resumed.
        accepted: accepted changes of the recipe with an effect on the result, `setting: before -> now`.
        changed: other changes of the recipe.
        versions: changed versions with an effect on the numbers, `torch: 2.12.0 -> 2.13.0`.
    """

    step: int
    accepted: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunState:
    """The content of `state.json`.

    Attributes:
        run: id of the run, the same over all its resumes.
        step: optimizer steps done.
        epoch: passes over the data done.
        method: the method's cursor; may hold NumPy arrays, which the run no longer changes.
        plugins: states of event plugins by name, and of trackers by `tracker:` and name.
        metrics: the last value of every metric.
        best: the best value of each evaluation metric.
        evaluated_at: the step of the last whole evaluation.
        seconds: time of the run so far.
        random: states of Python's and NumPy's global generators, for plugins that use them.
        bad_steps: every bad step so far.
        resumed: every resume so far.
    """

    run: str
    step: int
    epoch: float
    method: Mapping[str, Any]
    plugins: Mapping[str, Any]
    metrics: Mapping[str, float]
    best: Mapping[str, float]
    evaluated_at: int
    seconds: float
    random: Mapping[str, Any] = field(default_factory=dict)
    bad_steps: Sequence[BadStep] = ()
    resumed: Sequence[Resumed] = ()

    def measured_here(self) -> dict[str, float]:
        """Metrics for comparing the state with others: finite ones; evaluations only if they measured these weights."""
        stale = self.evaluated_at != self.step
        return {
            name: value
            for name, value in self.metrics.items()
            if math.isfinite(value) and not (stale and name.startswith("eval/"))
        }

    def as_json(self) -> dict[str, Any]:
        """Plain data; None replaces each array of the cursor, and `arrays` has their places.

        Raises:
            TypeError: a cursor or a plugin's state has a value that JSON cannot represent.
        """
        return self._separated()[0]

    def as_kept(self) -> dict[str, Any]:
        """`as_json` with the arrays in it, under `values`: for memory, not for a file."""
        content, arrays = self._separated()
        return {**content, "values": arrays} if arrays else content

    def write(self, folder: Path) -> None:
        """Write `state.json` into a folder, and the arrays, if any, next to it."""
        content, arrays = self._separated()
        if arrays:
            state_arrays.write(folder / state_arrays.FILE, arrays)
        write_json(folder / FILE, content, strict=True)

    def _separated(self) -> tuple[dict[str, Any], tuple[state_arrays.Array, ...]]:
        method, places, arrays = state_arrays.separated(self.method)
        content = {**asdict(replace(self, method=method)), "metrics": plain(self.metrics), "best": plain(self.best)}
        content |= {"format": FORMAT, **({"arrays": places} if places else {})}
        return json.loads(json.dumps(content, allow_nan=False)), arrays


def read(path: Path) -> RunState:
    """Read a state from a JSON file.

    Raises:
        UserError: the file is not a state, or has another version of the format.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        written = content.get("format")
        if written != FORMAT:
            raise UserError(
                f"{path} has format {written!r}, this version reads {FORMAT}",
                action="resume with the version that wrote it",
            )
        if "arrays" in content:
            content["values"] = state_arrays.read(path.with_name(state_arrays.FILE), len(content["arrays"]))
        return as_state(content)
    except (OSError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} does not hold the state of a run: {error}", action="use another checkpoint") from error


def as_state(content: Mapping[str, Any]) -> RunState:
    """A state from the result of `as_json` or `as_kept`."""
    values = {key: value for key, value in content.items() if key not in ("format", "arrays", "values")}
    values["method"] = state_arrays.joined(content["method"], content.get("arrays", ()), content.get("values", ()))
    values["bad_steps"] = tuple(BadStep(**{**bad, "rows": tuple(bad["rows"])}) for bad in content["bad_steps"])
    values["resumed"] = tuple(Resumed(**_tuples(resumption)) for resumption in content["resumed"])
    values["metrics"], values["best"] = unplain(content["metrics"]), unplain(content["best"])
    return RunState(**values)


def random_state() -> dict[str, Any]:
    """States of the global generators of Python and NumPy, JSON-able."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(name), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
    }


def seed_random(generator: np.random.Generator) -> None:
    """Seed the global generators of Python and NumPy: the core and its plugins have their own generators, but random
    numbers of user plugins must also be the same in every run of the recipe."""
    random.seed(int(generator.integers(2**63)))
    np.random.seed(int(generator.integers(2**32)))


def restore_random(state: Mapping[str, Any]) -> None:
    """Set the global generators to a state from `random_state`."""
    if "python" in state:
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
    if "numpy" in state:
        name, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((name, np.asarray(keys, np.uint32), position, has_gauss, cached))


def _tuples(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
