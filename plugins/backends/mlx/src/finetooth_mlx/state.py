"""Training state in memory and on disk: safetensors for arrays, JSON for the rest, no pickle.

    trained.safetensors     weights by name, fp32
    optimizer.safetensors   arrays of the optimizer's state
    gradients.safetensors   accumulated gradients by name (absent without any)
    losses.safetensors      arrays of loss states (absent without any)
    roles.safetensors       weights of roles that are copies of the policy (absent without any)
    state.json              the rest, with the SHA-256 of each file; written last, so a torn state is never read

Dropout and sampling are keyed by seed, step and example: counters are all their random state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from finetooth_hooks import UserError
from finetooth_hooks.protocols import EngineRequest
from finetooth_steps.passes import Counters
from finetooth_steps.saved_states import (
    OTHER,
    STATE,
    check_counters,
    check_identity,
    identity,
    read_content,
    restore_schedule,
    taking_its_place,
)
from finetooth_toolbox.files.manifests import sha256_of
from mlx.utils import tree_flatten, tree_unflatten
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from finetooth_mlx.arrays import NamedArrays

FORMAT = "mlx-1"
FILES = ("trained", "optimizer", "gradients", "losses", "roles")
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ResumeState:
    """The state that an engine resumes from."""

    masters: NamedArrays
    grads: NamedArrays
    optimizer: Any
    counters: Counters
    losses: Mapping[str, Mapping[str, Any]]
    roles: Mapping[str, NamedArrays]


@dataclass(frozen=True)
class State:
    """The training state at one moment; implements `finetooth_hooks.engine.Snapshot`.

    Attributes:
        files: arrays by file and key; no engine writes to their memory.
        content: the rest, JSON-able.
    """

    files: Mapping[str, Arrays]
    content: Mapping[str, Any]

    @classmethod
    def of(
        cls, request: EngineRequest, masters: NamedArrays, grads: NamedArrays, optimizer: Any, counters: Counters,
        losses: Mapping[str, Mapping[str, Any]], roles: Mapping[str, NamedArrays],
    ) -> State:  # fmt: skip
        """The state as it is now."""
        flat = dict(tree_flatten(optimizer))
        files = {"trained": _plain(masters), "optimizer": _plain(flat)}
        if roles:
            files["roles"] = _plain(_by_role(roles))
        if grads:
            files["gradients"] = _plain(grads)
        arrays: Arrays = {}
        numbers: dict[str, dict[str, Any]] = {}
        for loss, values in losses.items():
            numbers[loss] = {}
            for name, value in values.items():
                if isinstance(value, np.ndarray):
                    arrays[f"{loss}/{name}"] = np.array(value)
                else:
                    numbers[loss][name] = value
        if arrays:
            files["losses"] = arrays
        content = {
            "format": FORMAT,
            "model": identity(request),
            "precision": request.plan.train.precision,
            "counters": asdict(counters),
            "schedule": deepcopy(dict(request.updates.schedule.state())),
            "losses": numbers,
        }
        return cls(files, content)

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays take."""
        return sum(array.nbytes for arrays in self.files.values() for array in arrays.values())

    def to_host(self) -> State:
        """The snapshot itself: a Mac's host and device share one memory."""
        return self

    def save(self, path: Path) -> None:
        """Write the state next to `path` and move it there; an existing folder keeps its other files."""
        with taking_its_place(path, lambda name: name.removesuffix(".safetensors") in FILES) as folder:
            hashes = {}
            for name, arrays in self.files.items():
                save_file({key: np.asarray(array, order="C") for key, array in arrays.items()}, _file(folder, name))
                hashes[name] = sha256_of(_file(folder, name))
            text = json.dumps({**self.content, "files": hashes}, indent=1)
            (folder / STATE).write_text(text, encoding="utf-8")


def read_state(path: Path) -> State:
    """Load what `State.save` wrote.

    Raises:
        UserError: it is not a state, it is incomplete, or it is of another engine.
    """
    content = read_content(path)
    if content.get("format") != FORMAT:
        raise UserError(
            f"{path} has state format {content.get('format')!r}, and the MLX engine reads {FORMAT}: another engine "
            "wrote it",
            action="resume with the backend that wrote it, or begin from its artifact",
        )
    hashes = content.get("files")
    if not isinstance(hashes, dict) or not {"trained", "optimizer"} <= hashes.keys() <= set(FILES):
        raise UserError(f"{path}/state.json does not name the files of a state", action=OTHER)
    files = {}
    for name, wanted in hashes.items():
        file = _file(path, name)
        try:
            if not file.is_file() or file.is_symlink() or sha256_of(file) != wanted:
                raise UserError(f"{file} is missing or not what was saved", action=OTHER)
            files[name] = load_file(file)
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{file} is not a safetensors file: {str(error).splitlines()[0]}", action=OTHER) from error
    return State(files, content)


def checked_parts(
    state: State, request: EngineRequest, masters: NamedArrays, optimizer: Any, roles: Mapping[str, NamedArrays],
    where: str,
) -> ResumeState:  # fmt: skip
    """Check the parts of a state before the engine changes; the schedule checks its own.

    Args:
        masters, optimizer, roles: of the engine as it is.
        where: its source, for messages.

    Raises:
        UserError: the state is of another model, adapter, optimizer or precision.
    """
    content = state.content
    check_identity(where, content, request)
    _check_same(where, "trained", state.files["trained"], masters, "the adapter and its options")
    _check_same(where, "optimizer", state.files["optimizer"], dict(tree_flatten(optimizer)), "the optimizer")
    _check_same(where, "roles", state.files.get("roles", {}), _by_role(roles), "the method")
    grads = state.files.get("gradients", {})
    if grads:
        _check_same(where, "gradients", grads, masters, "the adapter and its options")
    check_counters(where, content)
    counters = Counters(**deepcopy(content["counters"]))
    losses = {name: dict(values) for name, values in content.get("losses", {}).items()}
    for key, array in state.files.get("losses", {}).items():
        loss, _, name = key.rpartition("/")
        losses.setdefault(loss, {})[name] = np.array(array)
    restore_schedule(request, content["schedule"], where)
    flat = [(name, mx.array(array)) for name, array in state.files["optimizer"].items()]
    order = {name: place for place, (name, _) in enumerate(tree_flatten(optimizer))}
    flat.sort(key=lambda pair: order[pair[0]])
    saved = _arrays(state.files.get("roles", {}))
    held = {role: {name: saved[f"{role}/{name}"] for name in weights} for role, weights in roles.items()}
    return ResumeState(_arrays(state.files["trained"]), _arrays(grads), tree_unflatten(flat), counters, losses, held)


def _by_role(roles: Mapping[str, NamedArrays]) -> NamedArrays:
    return {f"{role}/{name}": array for role, weights in roles.items() for name, array in weights.items()}


def _check_same(where: str, file: str, theirs: Arrays, mine: Mapping[str, mx.array], what: str) -> None:
    wanted = {name: tuple(array.shape) for name, array in mine.items()}
    saved = {name: tuple(array.shape) for name, array in theirs.items()}
    if wanted != saved:
        odd = sorted(name for name in wanted.keys() | saved.keys() if wanted.get(name) != saved.get(name))
        raise UserError(
            f"{where} does not fit: {len(odd)} arrays of {file}.safetensors differ, the first is {odd[0]!r} (saved "
            f"{saved.get(odd[0])}, here {wanted.get(odd[0])})",
            action=f"use {what} of the saved run",
        )


def _plain(arrays: Mapping[str, mx.array]) -> Arrays:
    """NumPy's views of MLX's arrays, which keep the arrays alive; nothing writes to them."""
    mx.eval(list(arrays.values()))
    return {name: np.asarray(array) for name, array in arrays.items()}


def _arrays(arrays: Mapping[str, NDArray[Any]]) -> NamedArrays:
    return {name: mx.array(array) for name, array in arrays.items()}


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"
