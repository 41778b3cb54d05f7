"""Settings of one optimizer step: those that replace the recipe's, and each parameter group's learning rate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from finetooth_hooks.engine import StepSettings
from finetooth_steps import step_settings

from finetooth_torch.state.optimizer import Options

NOT_OPTIONS = frozenset({"params", "lr", "initial_lr", "foreach", "fused", "capturable", "differentiable", "maximize"})
"""Keys of a parameter group that a recipe cannot set."""


def check_settings(settings: StepSettings, optimizer: torch.optim.Optimizer) -> None:
    """Check the settings of a step before anything changes.

    Raises:
        EngineError: an option that the optimizer does not have, or an invalid number.
    """
    group = optimizer.param_groups[0]
    options = {name: value for name, value in group.items() if name not in NOT_OPTIONS}
    step_settings.check_settings(settings, options, type(optimizer).__name__)


def rate_shares(groups: Sequence[Options], rate: float) -> tuple[float, ...]:
    """Each parameter group's factor on a step's learning rate: 1, or if the optimizer has groups with different rates,
    the group's divided by the optimizer's (0.1 for embeddings, for instance).

    Args:
        groups: their options when the optimizer was made.
        rate: `Optimizer.learning_rate`, to which the schedule's factors apply.
    """
    own = [float(group.get("lr", rate)) for group in groups]
    if len(set(own)) <= 1 or not rate:
        return (1.0,) * len(own)
    return tuple(lr / rate for lr in own)


def split_by_rate(
    optimizer: torch.optim.Optimizer, named: Sequence[tuple[str, torch.nn.Parameter]], shares: Mapping[str, float]
) -> None:
    """Split the parameter groups so that each parameter has its factor on its group's learning rate.

    Args:
        shares: by name, of those whose share is not 1.
    """
    if not shares:
        return
    share_of = {id(parameter): shares.get(name, 1.0) for name, parameter in named}
    groups = []
    for group in optimizer.param_groups:
        for share in sorted({share_of[id(parameter)] for parameter in group["params"]}):
            own = [parameter for parameter in group["params"] if share_of[id(parameter)] == share]
            groups.append({**group, "params": own, "lr": group["lr"] * share})
    optimizer.param_groups[:] = groups


def set_rates(optimizer: torch.optim.Optimizer, rate: float, shares: Sequence[float]) -> None:
    """Set each parameter group's learning rate; a group added later has the full rate."""
    for place, group in enumerate(optimizer.param_groups):
        group["lr"] = rate * (shares[place] if place < len(shares) else 1.0)


@contextmanager
def applied(settings: StepSettings, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside the `with` block, the optimizer has the options of `settings`; afterwards its own."""
    before = [{name: group[name] for name in settings.optimizer} for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        decays = any(parameter.ndim >= 2 for parameter in group["params"])
        group.update({name: value for name, value in settings.optimizer.items() if decays or name != "weight_decay"})
    try:
        yield
    finally:
        for group, own in zip(optimizer.param_groups, before, strict=True):
            group.update(own)
