"""Saving and loading what trains: safetensors for arrays, JSON for the rest."""

from __future__ import annotations

import hashlib
import json
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from finetooth_hooks import UserError
from safetensors.numpy import load_file, save_file

if TYPE_CHECKING:
    from toy_numpy.engine import NumpyEngine


def _base_hash(engine: NumpyEngine) -> str:
    digest = hashlib.sha256()
    for name in sorted(engine.model.base):
        digest.update(engine.model.base[name].tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Copied:
    """Everything that trains at one moment; `finetooth_hooks.engine.Snapshot`."""

    arrays: dict[str, Any]
    numbers: dict[str, Any]

    @classmethod
    def of(cls, engine: NumpyEngine) -> Copied:
        arrays = {f"delta.{name}": value for name, value in engine.model.delta.items()}
        arrays |= {f"grad.{name}": value for name, value in engine.grads.items()}
        arrays |= {f"optimizer.{name}": value for name, value in engine.optimizer.arrays().items()}
        numbers = {
            "base": _base_hash(engine),
            "weights_version": engine.weights_version,
            "rows": list(engine.rows),
            "optimizer": engine.optimizer.numbers(),
            "schedule": dict(engine.request.updates.schedule.state()),
            "losses": {name: dict(state) for name, state in engine.states.items()},
        }
        return cls({name: np.array(value) for name, value in arrays.items()}, deepcopy(numbers))

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in self.arrays.values())

    def to_host(self) -> Copied:
        return self

    def save(self, path: Path) -> None:
        """Write into a folder beside `path`'s files, JSON last."""
        path.mkdir(parents=True, exist_ok=True)
        save_file({name: np.ascontiguousarray(v) for name, v in self.arrays.items()}, path / "state.safetensors")
        (path / "state.json").write_text(json.dumps(self.numbers), encoding="utf-8")

    def give(self, engine: NumpyEngine) -> None:
        def part(prefix: str) -> dict[str, Any]:
            found = {name: value for name, value in self.arrays.items() if name.startswith(prefix)}
            return {name[len(prefix) :]: value.copy() for name, value in found.items()}

        numbers = deepcopy(self.numbers)
        engine.model.delta = part("delta.")
        engine.grads = part("grad.")
        engine.optimizer.restore(part("optimizer."), numbers["optimizer"])
        engine.request.updates.schedule.restore(numbers["schedule"])
        engine.states = numbers["losses"]
        engine.weights_version, engine.rows = numbers["weights_version"], numbers["rows"]


def load(engine: NumpyEngine, path: Path) -> None:
    """
    Raises:
        UserError: no state of this model.
    """
    try:
        numbers: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
        arrays = load_file(path / "state.safetensors")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} holds no state of the NumPy engine: {error}") from error
    if numbers["base"] != _base_hash(engine):
        raise UserError(f"{path} is a state of another base model")
    Copied(arrays, numbers).give(engine)
