"""Everything that trains, on disk: safetensors for tensors, JSON for the rest, no pickle.

    trained.safetensors     master weights by name
    optimizer.safetensors   tensors of the optimizer's state
    gradients.safetensors   accumulated gradients by name (absent without any)
    losses.safetensors      arrays of loss states (absent without any)
    role-NAME.safetensors   weights of a role that is a copy of the policy
    state.json              the rest, with the SHA-256 of each file; written last, so a torn state is never read

Dropout and sampling are keyed by seed, step and datum, so counters are all the random state there is.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from finetooth_hooks import UserError
from finetooth_hooks.protocols import EngineRequest
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetooth_torch.role_models import copies

if TYPE_CHECKING:
    from finetooth_torch.engine import Parts

FORMAT = 1


@dataclass
class Counters:
    """What an engine counts.

    Attributes:
        step: optimizer steps done, skipped ones included.
        accumulated: calls whose gradients wait for the next step.
        loss: sum of their losses, for a schedule that watches it.
    """

    step: int = 0
    accumulated: int = 0
    loss: float = 0.0


@dataclass(frozen=True)
class State:
    """Everything that trains at one moment; implements `finetooth_hooks.engine.Snapshot`.

    Attributes:
        files: tensors by file and key.
        content: the rest, JSON-able; `files` of what is written are added to it.
    """

    files: Mapping[str, Mapping[str, Tensor]]
    content: Mapping[str, Any]

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors take."""
        return sum(tensor.nbytes for tensors in self.files.values() for tensor in tensors.values())

    def to_host(self) -> State:
        """The state in host memory, in memory of its own: pinned where it comes from an accelerator."""
        return State(
            {name: {key: _on_host(t) for key, t in tensors.items()} for name, tensors in self.files.items()},
            self.content,
        )

    def save(self, path: Path) -> None:
        """Write it beside `path` and move it there; an existing folder keeps its other files."""
        staging = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            self._write(staging)
            if not path.exists():
                staging.rename(path)
                return
            for stale in ("gradients.safetensors", "losses.safetensors"):
                if not (staging / stale).exists():
                    (path / stale).unlink(missing_ok=True)
            for name in sorted(file.name for file in staging.iterdir() if file.name != "state.json"):
                (staging / name).replace(path / name)
            (staging / "state.json").replace(path / "state.json")
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _write(self, folder: Path) -> None:
        hashes = {}
        for name, tensors in self.files.items():
            file = folder / f"{name}.safetensors"
            save_file(_apart(tensors), file)
            hashes[file.name] = _sha256(file)
        (folder / "state.json").write_text(json.dumps({**self.content, "files": hashes}, indent=1), encoding="utf-8")


def state_of(
    request: EngineRequest,
    parts: Parts,
    counters: Counters,
    loss_states: Mapping[str, Mapping[str, Any]],
    *,
    copy: bool = True,
) -> State:
    """The state as it is now.

    Args:
        copy: into memory of its own on the same device, so that it stays what it was; else it shares its tensors with
            the engine, for whoever writes it at once.
    """
    files: dict[str, dict[str, Tensor]] = {"trained": {name: p.detach() for name, p in parts.parameters.named()}}
    gradients = {name: p.grad for name, p in parts.parameters.named() if p.grad is not None}
    if gradients:
        files["gradients"] = gradients
    files |= {f"role-{role}": copy_.named() for role, copy_ in copies(parts.network).items()}
    files["optimizer"] = {}
    optimizer = _flatten(parts.optimizer.state_dict(), files["optimizer"])
    arrays: dict[str, Tensor] = {}
    losses = _flatten(loss_states, arrays)
    if arrays:
        files["losses"] = arrays
    content = {
        "format": FORMAT,
        "model": _identity(request),
        "precision": request.plan.train.precision,
        "counters": asdict(counters),
        "scaler": parts.scaler.state(),
        "schedule": deepcopy(dict(request.schedule.state())),
        "optimizer": optimizer,
        "losses": losses,
    }
    if copy:
        files = {name: {key: t.detach().clone() for key, t in tensors.items()} for name, tensors in files.items()}
    return State(files, content)


def restore_state(
    state: State, request: EngineRequest, parts: Parts, counters: Counters, where: str, *, keep: bool
) -> dict[str, Mapping[str, Any]]:
    """Take a state back; returns the loss states. Everything is checked before anything is changed.

    Args:
        where: it comes from, for messages.
        keep: the state is used again; without it the optimizer may go on in its tensors.

    Raises:
        UserError: one of another model, adapter, optimizer or precision.
    """
    content, files = state.content, state.files
    _check(where, content, files["trained"], request, parts)
    moments = {key: tensor.clone() if keep else tensor for key, tensor in files["optimizer"].items()}
    optimizer = _unflatten(content["optimizer"], moments)
    _check_optimizer(where, optimizer, parts.optimizer)
    _check_copies(where, files, parts)
    parts.parameters.zero_grad()
    parts.parameters.restore(files["trained"])
    for name, master in parts.parameters.named():
        gradient = files.get("gradients", {}).get(name)
        if gradient is not None:
            master.grad = gradient.to(device=master.device, dtype=master.dtype, copy=True)
    for role, copy in copies(parts.network).items():
        copy.restore(files[f"role-{role}"])
    _restore_optimizer(parts.optimizer, optimizer)
    request.schedule.restore(deepcopy(content["schedule"]))
    parts.scaler.restore(content["scaler"])
    for name, value in content["counters"].items():
        setattr(counters, name, value)
    losses = _unflatten(content["losses"], files.get("losses", {}))
    return {
        name: {
            key: value.cpu().numpy().copy() if isinstance(value, Tensor) else value for key, value in of_loss.items()
        }
        for name, of_loss in losses.items()
    }


def read_state(path: Path) -> State:
    """What `State.save` wrote.

    Raises:
        UserError: it is no state, or a torn one.
    """
    content, files = _read(path)
    return State(files, content)


def _on_host(tensor: Tensor) -> Tensor:
    """A copy in host memory. A pinned one is made without holding up the device."""
    if tensor.device.type == "cpu":
        return tensor.clone()
    held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
    return held.copy_(tensor)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in host memory that share none of it with each other, as safetensors wants them."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, tensor in tensors.items():
        held = tensor.detach().cpu().contiguous()
        start = held.untyped_storage().data_ptr()
        found[key] = held.clone() if start in seen or held.untyped_storage().nbytes() != held.nbytes else held
        seen.add(start)
    return found


def _read(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no saved engine state: {error}", action="give the folder that was saved") from error
    if state.get("format") != FORMAT:
        raise UserError(
            f"{path} has state format {state.get('format')!r}, this version reads {FORMAT}",
            action="load it with the version that wrote it",
        )
    files = {}
    for name, expected in state["files"].items():
        file = path / name
        if not file.is_file() or _sha256(file) != expected:
            raise UserError(f"{file} is missing or not what was saved", action="use another checkpoint")
        files[file.stem] = load_file(file)
    return state, files


def _check(
    path: str, state: Mapping[str, Any], trained: Mapping[str, Tensor], request: EngineRequest, parts: Parts
) -> None:
    for name, value in _identity(request).items():
        saved = state["model"].get(name)
        if saved != value and saved and value:
            raise UserError(
                f"{path} was saved with the model's {name} {saved!r}, this one has {value!r}",
                action="load it into the model it was saved from",
            )
    if state["precision"] != request.plan.train.precision:
        raise UserError(
            f"{path} was saved with train.precision={state['precision']}, this run has {request.plan.train.precision}",
            action=f"set train.precision to {state['precision']}",
        )
    mine = {name: tuple(master.shape) for name, master in parts.parameters.named()}
    theirs = {name: tuple(tensor.shape) for name, tensor in trained.items()}
    if mine != theirs:
        odd = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
        raise UserError(
            f"{path} is not a state of this adapter: {len(odd)} trained parameters differ, the first is {odd[0]!r} "
            f"(saved {theirs.get(odd[0])}, here {mine.get(odd[0])})",
            action="use the adapter and its options of the saved run",
        )


def _check_copies(path: str, files: Mapping[str, Mapping[str, Tensor]], parts: Parts) -> None:
    mine = {f"role-{role}" for role in copies(parts.network)}
    theirs = {name for name in files if name.startswith("role-")}
    if mine != theirs:
        name = min(mine ^ theirs)
        raise UserError(
            f"{path} was saved {'without' if name in mine else 'with'} a copy of the policy as {name[5:]!r}",
            action="use the method's reference of the saved run",
        )


def _check_optimizer(path: str, saved: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    mine = optimizer.state_dict()["param_groups"]
    theirs = saved["param_groups"]
    same = len(mine) == len(theirs) and all(
        a.keys() == b.keys() and a["params"] == b["params"] for a, b in zip(mine, theirs, strict=True)
    )
    if not same:
        raise UserError(
            f"{path} was saved with another optimizer or other parameter groups",
            action="use the optimizer and its options of the saved run",
        )


def _restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    optimizer.load_state_dict(saved)
    # load_state_dict casts states to their parameter's dtype; a state kept in another (8-bit, bf16) must stay as saved
    masters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, entries in saved["state"].items():
        mine = optimizer.state[masters[index]]
        for name, value in entries.items():
            if isinstance(value, Tensor) and isinstance(mine.get(name), Tensor) and mine[name].dtype != value.dtype:
                mine[name] = value.to(mine[name].device)


def _identity(request: EngineRequest) -> dict[str, Any]:
    model = request.model
    return {"model_type": model.model_type, "parameters": model.parameters, "revision": model.revision}


def _flatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON for nested states; each tensor or array goes to `tensors` and leaves its key behind."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value
        return {"tensor": key}
    if isinstance(value, Mapping):
        return {"items": [[_flatten(k, tensors), _flatten(v, tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_flatten(item, tensors) for item in value]}
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(f"a state holds {type(value).__name__}, which cannot be saved", action="keep numbers and arrays")


def _unflatten(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "items":
        return {_unflatten(k, tensors): _unflatten(v, tensors) for k, v in content}
    items = [_unflatten(item, tensors) for item in content]
    return items if kind == "list" else tuple(items)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
