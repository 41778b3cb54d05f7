"""Checks that this engine can load a state, before anything changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from finetooth_hooks import UserError
from finetooth_hooks.protocols import EngineRequest
from finetooth_steps.saved_states import OTHER, check_counters, check_identity, is_finite
from torch import Tensor

from finetooth_torch.randomness import check_states
from finetooth_torch.roles.role_models import copies
from finetooth_torch.state.optimizer import Options, check_optimizer, each_like
from finetooth_torch.state.values import keys_of, unflatten

if TYPE_CHECKING:
    from finetooth_torch.engine import Parts
    from finetooth_torch.state.training_state import State


@dataclass(frozen=True)
class Checked:
    """Contents of a state besides weights and gradients.

    Attributes:
        optimizer: its state dict, with the state's own tensors.
        options: of its groups, when the saved engine was built.
        losses: states of losses by name, arrays as NumPy's.
    """

    optimizer: Mapping[str, Any]
    options: Sequence[Options]
    losses: dict[str, Mapping[str, Any]]
    counters: Mapping[str, Any]


def checked(state: State, request: EngineRequest, parts: Parts, where: str) -> Checked:
    """The parts of a state.

    Args:
        where: its source, for messages.

    Raises:
        UserError: it is of another model, adapter, optimizer or precision, or no engine wrote it.
    """
    content, files = state.content, state.files
    check_identity(where, content, request)
    masters = dict(parts.parameters.named())
    _check_weights(where, files["trained"], masters)
    _check_gradients(where, files.get("gradients", {}), masters)
    _check_copies(where, files, parts, masters)
    _check_weights(where, files.get("adapter", {}), parts.changes.held())
    check_states(f"{where}/random.safetensors", files["random"], parts.device)
    optimizer = _nested(where, "optimizer", content, files["optimizer"])
    options = _nested(where, "optimizer_options", content, files["optimizer"])
    losses = _nested(where, "losses", content, files.get("losses", {}))
    named = parts.parameters.named()
    optimizer = each_like(parts.optimizer, parts.parameters, optimizer, parts.parameters.own)
    check_optimizer(where, optimizer, parts.optimizer, request.updates.optimizer, named)
    _check_all_used(where, "optimizer", (content["optimizer"], content["optimizer_options"]), files)
    _check_all_used(where, "losses", (content["losses"],), files)
    if not isinstance(options, tuple) or len(options) != len(parts.group_options):
        raise UserError(f"{where}: optimizer_options are not those of its groups", action=OTHER)
    if not isinstance(losses, dict) or not all(isinstance(of_loss, dict) for of_loss in losses.values()):
        raise UserError(f"{where}: states of losses are missing", action=OTHER)
    check_counters(where, content)
    _check_scaler(where, content.get("scaler"))
    return Checked(
        optimizer, options, {name: _arrays(of_loss) for name, of_loss in losses.items()}, content["counters"]
    )


def _check_weights(where: str, trained: Mapping[str, Tensor], masters: Mapping[str, Tensor]) -> None:
    mine = {name: tuple(master.shape) for name, master in masters.items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in trained.items()}
    if mine != theirs:
        odd = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
        raise UserError(
            f"{where} is not a state of this adapter: {len(odd)} trained parameters differ, the first is {odd[0]!r} "
            f"(saved {theirs.get(odd[0])}, here {mine.get(odd[0])})",
            action="use the adapter and its options of the saved run",
        )
    _check_types(where, "trained", trained, {name: master.dtype for name, master in masters.items()})


def _check_copies(
    where: str, files: Mapping[str, Mapping[str, Tensor]], parts: Parts, masters: Mapping[str, Tensor]
) -> None:
    """Check that the roles' copies of the policy are the engine's, with the same weights."""
    mine = {f"role-{role}" for role in copies(parts.network)}
    theirs = {name for name in files if name.startswith("role-")}
    if mine != theirs:
        name = min(mine ^ theirs)
        raise UserError(
            f"{where} was saved {'without' if name in mine else 'with'} a copy of the policy as {name[5:]!r}",
            action="use the method's reference of the saved run",
        )
    for name in theirs:
        _check_weights(where, files[name], masters)


def _check_gradients(where: str, gradients: Mapping[str, Tensor], masters: Mapping[str, Tensor]) -> None:
    for name, gradient in gradients.items():
        if name not in masters or gradient.shape != masters[name].shape:
            raise UserError(
                f"{where} holds a gradient {name!r} of shape {tuple(gradient.shape)}, which no trained parameter has",
                action=OTHER,
            )
    # gradients accumulate in fp32, also for bf16 weights
    types = {name: torch.promote_types(master.dtype, torch.float32) for name, master in masters.items()}
    _check_types(where, "gradients", gradients, types)


def _check_types(where: str, file: str, tensors: Mapping[str, Tensor], types: Mapping[str, torch.dtype]) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype != types[name]:
            raise UserError(
                f"{where}/{file}.safetensors holds {name!r} in {tensor.dtype}, not {types[name]}", action=OTHER
            )


def _nested(where: str, name: str, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    try:
        return unflatten(content[name], tensors)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{where}/state.json: {name} is not what an engine writes ({type(error).__name__}: {error})", action=OTHER
        ) from error


def _check_all_used(where: str, file: str, nested: Sequence[Any], files: Mapping[str, Mapping[str, Tensor]]) -> None:
    extra = sorted(files.get(file, {}).keys() - keys_of(list(nested)))
    if extra:
        raise UserError(f"{where}/{file}.safetensors holds {extra[0]!r}, which no state has", action=OTHER)


def _check_scaler(where: str, scaler: Any) -> None:
    wrong = (
        not isinstance(scaler, dict)
        or scaler.keys() != {"scale", "good_steps"}
        or not (is_finite(scaler["scale"]) and scaler["scale"] > 0)
        or not (type(scaler["good_steps"]) is int and scaler["good_steps"] >= 0)
    )
    if wrong:
        raise UserError(f"{where}/state.json: the loss scale is {scaler!r:.200}", action=OTHER)


def _arrays(of_loss: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value.detach().cpu().numpy().copy() if isinstance(value, torch.Tensor) else value
        for key, value in of_loss.items()
    }
