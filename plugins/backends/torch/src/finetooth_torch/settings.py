"""Numbers of one optimizer step in place of the recipe's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from finetooth_hooks import EngineError
from finetooth_hooks.engine import StepSettings

NOT_OPTIONS = frozenset({"params", "lr", "initial_lr", "foreach", "fused", "capturable", "differentiable", "maximize"})
"""What a parameter group holds beside options that a recipe knows."""


def check_settings(settings: StepSettings, optimizer: torch.optim.Optimizer) -> None:
    """Refuse what the step could not apply, before anything is changed.

    Raises:
        EngineError: an option that the optimizer does not have, or a number that makes no sense.
    """
    options = sorted(set(optimizer.param_groups[0]) - NOT_OPTIONS)
    for name, value in settings.optimizer.items():
        if name not in options:
            raise EngineError(
                f"step: the optimizer {type(optimizer).__name__} has no option {name!r}",
                action=f"its options are {', '.join(options)}",
            )
        held = optimizer.param_groups[0][name]
        if isinstance(held, tuple) != isinstance(value, tuple) or (isinstance(held, tuple) and len(held) != len(value)):  # type: ignore[arg-type]
            raise EngineError(f"step: {name} is {value!r}", action=f"give it the shape of {held!r}")
        _check(name, value if isinstance(value, tuple) else (value,), below=1.0 if name in ("betas", "momentum") else 0)
    for name, number in (("learning_rate", settings.learning_rate), ("max_grad_norm", settings.max_grad_norm)):
        if number is not None:
            _check(name, (number,))


def _check(name: str, values: tuple[float, ...], below: float = 0.0) -> None:
    for value in values:
        if not math.isfinite(value) or value < 0 or (below and value >= below):
            bound = f"a number from 0 to below {below:g}" if below else "a finite number, 0 or more"
            raise EngineError(f"step: {name} is {value}", action=f"give {bound}")


@contextmanager
def applied(settings: StepSettings, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, the optimizer has the options of `settings`; afterwards its own again."""
    before = [{name: group[name] for name in settings.optimizer} for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        decays = any(parameter.ndim >= 2 for parameter in group["params"])
        group.update({name: value for name, value in settings.optimizer.items() if decays or name != "weight_decay"})
    try:
        yield
    finally:
        for group, own in zip(optimizer.param_groups, before, strict=True):
            group.update(own)
