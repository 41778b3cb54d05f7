"""The optimizer's part of a state: a trial finds its layout, and the recipe's changed options win."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from finetooth_hooks import UserError
from finetooth_hooks.protocols import Optimizer
from torch import Tensor, nn

from finetooth_torch.updates.parameters import TrainedParameters

Options = Mapping[str, Any]
TRIED = (2, 3, 5, 7, 11)
"""Sizes of the trial's tensor, all different, so that each dimension of a state is recognised by its size."""


def group_options(optimizer: torch.optim.Optimizer) -> tuple[Options, ...]:
    """The options of each parameter group, as they are now."""
    return tuple(
        {name: deepcopy(value) for name, value in group.items() if name != "params"} for group in optimizer.param_groups
    )


def restored_options(group: dict[str, Any], was: Options, now: Options) -> dict[str, Any]:
    """A saved group with the options that the recipe changed since the saved engine was built.

    Others stay as saved, since an optimizer may keep state in its groups.
    """
    changed = {name: deepcopy(value) for name, value in now.items() if name in was and was[name] != value}
    return {**group, **changed}


def each_like(
    optimizer: torch.optim.Optimizer,
    parameters: TrainedParameters,
    saved: Any,
    change: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
) -> Any:
    """A state dict of the optimizer with `change` applied to tensors in the shape of their parameter, by the
    parameter's name; others do not change, and a later check refuses them."""
    entries = saved.get("state") if parameters.sharded and isinstance(saved, dict) else None
    if not isinstance(entries, dict):
        return saved
    name_of = {id(master): name for name, master in parameters.named()}
    names = [name_of[id(master)] for group in optimizer.param_groups for master in group["params"]]
    made = {}
    for index, of_parameter in entries.items():
        made[index] = of_parameter
        if isinstance(index, int) and 0 <= index < len(names) and isinstance(of_parameter, dict):
            name = names[index]
            made[index] = {
                key: change({name: value})[name] if isinstance(value, Tensor) and value.dim() else value
                for key, value in of_parameter.items()
            }
    return {**saved, "state": made}


def check_optimizer(
    where: str,
    saved: Any,
    optimizer: torch.optim.Optimizer,
    factory: Optimizer,
    named: Sequence[tuple[str, nn.Parameter]],
) -> None:
    """Check that the optimizer can continue from a saved state.

    Args:
        saved: a state dict, with tensors.

    Raises:
        UserError: it has another optimizer or other parameter groups, or its tensors do not fit the parameters.
    """
    mine = optimizer.state_dict()["param_groups"]
    theirs = saved.get("param_groups") if isinstance(saved, dict) else None
    same = (
        isinstance(theirs, list)
        and len(mine) == len(theirs)
        and isinstance(saved.get("state"), dict)
        and all(_same_group(a, b) for a, b in zip(mine, theirs, strict=True))
    )
    if not same:
        raise UserError(
            f"{where} was saved with another optimizer or other parameter groups",
            action="use the optimizer and its options of the saved run",
        )
    names = {id(parameter): name for name, parameter in named}
    masters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    tried: dict[tuple[str, torch.Size], StateTrial | None] = {}
    for index, entries in saved["state"].items():
        if not isinstance(index, int) or not 0 <= index < len(masters) or not isinstance(entries, dict):
            raise _odd(where, f"a state of parameter {index!r}, of which there are {len(masters)}")
        master = masters[index]
        name = names[id(master)]
        alike = re.sub(r"\d+", "", name), master.shape  # of all layers
        if alike not in tried:
            tried[alike] = _tried(factory, name, master)
        _check_entries(where, name, entries, tried[alike], master)


def take_optimizer(
    optimizer: torch.optim.Optimizer, saved: Mapping[str, Any], was: Sequence[Options], now: Sequence[Options]
) -> None:
    """Load a saved and checked state, as copies.

    Args:
        was, now: options of the groups as the saved engine and this one were built.
    """
    masters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    own = {
        index: {name: _own(value, masters[index]) for name, value in entries.items()}
        for index, entries in saved["state"].items()
    }
    groups = [
        restored_options(group, *options)
        for group, options in zip(saved["param_groups"], zip(was, now, strict=True), strict=True)
    ]
    optimizer.load_state_dict({"state": own, "param_groups": groups})
    # load_state_dict casts states to their parameter's dtype; a state kept in another (8-bit, bf16) must stay as saved
    for index, entries in own.items():
        mine = optimizer.state[masters[index]]
        for name, value in entries.items():
            if isinstance(value, Tensor) and isinstance(mine.get(name), Tensor) and mine[name].dtype != value.dtype:
                mine[name] = value.to(mine[name].device)


def _own(value: Any, master: Tensor) -> Any:
    """A copy; a tensor in the shape of its parameter gets the parameter's memory layout, so that sums have the same
    order."""
    if not isinstance(value, Tensor):
        return deepcopy(value)
    if value.shape != master.shape or value.dim() == 0:
        return value.detach().clone()
    return torch.empty_like(master, dtype=value.dtype, device=value.device).copy_(value)


def _same_group(mine: Mapping[str, Any], theirs: Any) -> bool:
    return (
        isinstance(theirs, dict)
        and mine.keys() == theirs.keys()
        and mine["params"] == theirs["params"]
        and all(_alike(mine[name], theirs[name]) for name in mine)
    )


def _alike(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return True
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.shape == b.shape
    if isinstance(a, int | float) and not isinstance(a, bool):
        return isinstance(b, int | float) and not isinstance(b, bool)
    return type(a) is type(b) and (not isinstance(a, list | tuple) or len(a) == len(b))


@dataclass(frozen=True)
class StateTrial:
    """The state of a trial parameter after one update.

    Attributes:
        entries: the state.
        small: the trial parameter had the sizes `TRIED`, not the real ones.
    """

    entries: Mapping[str, Any]
    small: bool


def _tried(factory: Optimizer, name: str, master: Tensor) -> StateTrial | None:
    """None if unknown. The first trial uses a parameter without memory, of the real sizes, on which the state may
    depend; the second, for optimizers that read numbers or call their own kernels, a small one."""
    like = nn.Parameter(torch.empty_like(master, device="meta"))
    states = _after_one_update(factory, name, like)
    if states is not None:
        return StateTrial(states, small=False)
    if master.dim() > len(TRIED):
        return None
    states = _after_one_update(
        factory, name, nn.Parameter(torch.ones(TRIED[: master.dim()], dtype=master.dtype, device=master.device))
    )
    return None if states is None else StateTrial(states, small=True)


def _after_one_update(factory: Optimizer, name: str, parameter: nn.Parameter) -> Mapping[str, Any] | None:
    """The state as in the state dict, which is saved: some optimizers store it differently themselves."""
    with suppress(Exception), torch.random.fork_rng(devices=[]), torch.enable_grad():
        optimizer = factory.create([(name, parameter)])
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        return dict(optimizer.state_dict()["state"].get(0, {}))
    return None


def _check_entries(where: str, name: str, entries: Mapping[Any, Any], tried: StateTrial | None, master: Tensor) -> None:
    if tried is None:
        return
    lacking = sorted(tried.entries.keys() - entries.keys())
    if lacking:
        raise _odd(where, f"no {lacking[0]!r} in the state of {name}")
    for key, like in tried.entries.items():
        value = entries[key]
        if isinstance(like, Tensor) != isinstance(value, Tensor):
            raise _odd(where, f"{key!r} of {name} as a {type(value).__name__}")
        if not isinstance(like, Tensor):
            continue
        wanted = _shape(like, master) if tried.small else tuple(like.shape)
        if wanted is not None and tuple(value.shape) != wanted:
            raise _odd(where, f"{key!r} of {name} with the shape {tuple(value.shape)}, not {wanted}")
        if like.is_floating_point() and not value.is_floating_point() and value.element_size() > 1:
            raise _odd(where, f"{key!r} of {name} in {value.dtype}")


def _shape(like: Tensor, master: Tensor) -> tuple[int, ...] | None:
    """The shape of a state from that of a small one; None if its sizes are not those of its parameter."""
    sizes = dict(zip(TRIED, master.shape, strict=False)) | {1: 1}
    shape = tuple(sizes.get(size, 0) for size in like.shape)
    return None if 0 in shape and 0 not in master.shape else shape


def _odd(where: str, what: str) -> UserError:
    return UserError(
        f"{where}: the optimizer's state has {what}", action="use another checkpoint, or the optimizer of the saved run"
    )
