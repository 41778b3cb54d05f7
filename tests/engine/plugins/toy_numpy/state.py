"""Saving and loading what trains: safetensors for arrays, JSON for the rest."""

from __future__ import annotations

import hashlib
import json
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


def save(engine: NumpyEngine, path: Path) -> None:
    """Write into a folder beside `path`'s files, JSON last."""
    path.mkdir(parents=True, exist_ok=True)
    arrays = {f"delta.{name}": value for name, value in engine.model.delta.items()}
    arrays |= {f"grad.{name}": value for name, value in engine.grads.items()}
    arrays |= {f"optimizer.{name}": value for name, value in engine.optimizer.arrays().items()}
    save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, path / "state.safetensors")
    numbers = {
        "base": _base_hash(engine),
        "weights_version": engine.weights_version,
        "optimizer": engine.optimizer.numbers(),
        "schedule": dict(engine.request.schedule.state()),
        "losses": {name: dict(state) for name, state in engine.states.items()},
    }
    (path / "state.json").write_text(json.dumps(numbers), encoding="utf-8")


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

    def part(prefix: str) -> dict[str, Any]:
        return {name[len(prefix) :]: value for name, value in arrays.items() if name.startswith(prefix)}

    engine.model.delta = part("delta.")
    engine.grads = part("grad.")
    engine.optimizer.restore(part("optimizer."), numbers["optimizer"])
    engine.request.schedule.restore(numbers["schedule"])
    engine.states = numbers["losses"]
    engine.weights_version = numbers["weights_version"]
