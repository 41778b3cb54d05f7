"""Training state in memory and on disk: safetensors for tensors, JSON for the rest, no pickle.

    trained.safetensors     master weights by name
    optimizer.safetensors   tensors of the optimizer's state
    random.safetensors      states of torch's global generators, by device
    gradients.safetensors   accumulated gradients by name (absent without any)
    losses.safetensors      arrays of loss states (absent without any)
    adapter.safetensors     what the adapter changes in addition to trained weights (absent without any)
    role-NAME.safetensors   weights of a role that is a copy of the policy
    state.json              the rest, with the SHA-256 of each file; written last, so a torn state is never read

Dropout and sampling are keyed by seed, step and example: counters are all their random state. Gradients are divided by
the loss scale when they are accumulated, so a state needs only them and the scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from finetooth_hooks import EngineError, UserError
from finetooth_hooks.protocols import EngineRequest
from finetooth_steps.passes import Counters
from finetooth_steps.saved_states import identity, restore_schedule
from finetooth_toolbox.text.measures import size
from torch import Tensor

from finetooth_torch.device.accelerator import current
from finetooth_torch.device.exhaustion import is_exhaustion
from finetooth_torch.randomness import global_states, set_global
from finetooth_torch.ranks import Ranks
from finetooth_torch.roles.role_models import copies
from finetooth_torch.state.files import FORMAT, read_files, write_state
from finetooth_torch.state.optimizer import each_like, take_optimizer
from finetooth_torch.state.values import flatten

if TYPE_CHECKING:
    from finetooth_torch.engine import Parts
    from finetooth_torch.updates.parameters import TrainedParameters


@dataclass(frozen=True)
class State:
    """The training state at one moment; implements `finetooth_hooks.engine.Snapshot`.

    Attributes:
        files: tensors by file and key; on the device `meta` where another rank keeps them.
        content: the rest, JSON-able; `files` of what is written are added to it.
        own: the tensors share no memory with the engine.
    """

    files: Mapping[str, Mapping[str, Tensor]]
    content: Mapping[str, Any]
    own: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors take."""
        return sum(tensor.nbytes for tensors in self.files.values() for tensor in tensors.values())

    def to_host(self) -> State:
        """A copy of the state in host memory, pinned if it comes from an accelerator.

        Raises:
            EngineError: the host has no room for it.
        """
        kinds = {tensor.device.type for tensors in self.files.values() for tensor in tensors.values()}
        if self.own and kinds <= {"cpu", "meta"}:
            return self
        try:
            copied = {name: {key: _on_host(t) for key, t in tensors.items()} for name, tensors in self.files.items()}
        except Exception as error:
            if not is_exhaustion(error):
                raise
            raise EngineError(
                f"host memory does not suffice for a copy of all that trains ({size(self.nbytes)})",
                action="keep fewer snapshots (checkpoint.stores), train fewer parameters, or give it more memory",
            ) from error
        return State(copied, self.content, own=True)

    def save(self, path: Path) -> None:
        """Write it to a temporary folder and move it to `path`; an existing folder keeps its other files."""
        write_state(Path(path), self.files, self.content)


def state_of(
    request: EngineRequest,
    parts: Parts,
    ranks: Ranks,
    counters: Counters,
    loss_states: Mapping[str, Mapping[str, Any]],
    *,
    copy: bool = True,
) -> State:
    """The current state, the same at every rank. With accumulated gradients, all ranks must call it.

    Args:
        copy: whether to copy it, on the same device, so that it does not change; else it shares tensors with the
            engine, for a caller that writes it at once.
    """
    whole = parts.parameters.whole
    files: dict[str, Mapping[str, Tensor]] = {
        "trained": whole({name: p.detach() for name, p in parts.parameters.named()})
    }
    gradients, counted = ranks.waiting(counters)
    if gradients:
        files["gradients"] = whole(gradients)
    files |= {f"role-{role}": whole(copy_.named()) for role, copy_ in copies(parts.network).items()}
    if of_adapter := parts.changes.held():
        files["adapter"] = {name: tensor.detach() for name, tensor in of_adapter.items()}
    of_optimizer: dict[str, Tensor] = {}
    saved = each_like(parts.optimizer, parts.parameters, parts.parameters.whole_state(parts.optimizer), whole)
    optimizer = flatten(saved, of_optimizer)
    options = flatten(parts.group_options, of_optimizer)
    files["optimizer"] = of_optimizer
    arrays: dict[str, Tensor] = {}
    losses = flatten(loss_states, arrays)
    if arrays:
        files["losses"] = arrays
    content = {
        "format": FORMAT,
        "model": identity(request),
        "precision": request.plan.train.precision,
        "counters": asdict(counted),
        "scaler": parts.scaler.state(),
        "schedule": deepcopy(dict(request.updates.schedule.state())),
        "optimizer": optimizer,
        "optimizer_options": options,
        "losses": losses,
    }
    if copy:
        files = {name: _copied(tensors, parts.parameters, name) for name, tensors in files.items()}
    files["random"] = global_states(parts.device)
    return State(files, content, own=copy)


def read_state(path: Path) -> State:
    """What `State.save` wrote.

    Raises:
        UserError: the folder holds no state, or an incomplete one.
    """
    content, files = read_files(path)
    return State(files, content)


def restore_state(
    state: State, request: EngineRequest, parts: Parts, ranks: Ranks, counters: Counters, where: str
) -> dict[str, Mapping[str, Any]]:
    """Load a state, as copies; return the loss states. All checks come before any change.

    Args:
        where: it comes from, for messages.

    Raises:
        UserError: it is of another model, adapter, optimizer or precision, or no engine wrote it.
    """
    from finetooth_torch.state.checks import checked

    if parts.parameters.keeps and any(of.is_meta for tensors in state.files.values() for of in tensors.values()):
        raise UserError(
            f"{where} is that of a rank, whose weights rank 0 keeps", action="use the one of the run folder"
        )
    ours = {
        name: parts.parameters.own(tensors) if name in ("trained", "gradients") or name.startswith("role-") else tensors
        for name, tensors in state.files.items()
    }
    state = replace(state, files=ours)
    valid = checked(state, request, parts, where)
    restore_schedule(request, state.content["schedule"], where)
    parts.parameters.zero_grad()
    parts.parameters.restore(state.files["trained"])
    gradients = state.files.get("gradients", {})
    for name, master in parts.parameters.named():
        if name in gradients:  # with the memory layout of a backward pass, so that norms sum in the same order
            master.grad = torch.empty_like(master, dtype=gradients[name].dtype).copy_(gradients[name])
    for role, copy_ in copies(parts.network).items():
        copy_.restore(state.files[f"role-{role}"])
    take_optimizer(parts.optimizer, valid.optimizer, valid.options, parts.group_options)
    parts.scaler.restore(state.content["scaler"])
    for name, value in valid.counters.items():
        setattr(counters, name, deepcopy(value))
    ranks.took(counters)
    set_global(state.files["random"], parts.device)
    parts.changes.restore(state.files.get("adapter", {}), counters.step)
    return valid.losses


def _copied(tensors: Mapping[str, Tensor], parameters: TrainedParameters, name: str) -> dict[str, Tensor]:
    """Copies of a file's tensors, except gathered ones, which are copies already."""
    gathered = parameters.sharded and (name in ("trained", "gradients", "optimizer") or name.startswith("role-"))
    return {key: of.detach() if gathered and of.dim() else of.detach().clone() for key, of in tensors.items()}


def _on_host(tensor: Tensor) -> Tensor:
    """A copy in host memory; a pinned one does not block the device."""
    if tensor.device.type in ("cpu", "meta"):
        return tensor.clone()
    with current(tensor.device):  # a new thread has none
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
        return host.copy_(tensor)
