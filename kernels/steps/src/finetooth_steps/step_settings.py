"""Checks of the numbers that one optimizer step takes in place of the recipe's; they need no array library."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from finetooth_hooks.engine import StepSettings
from finetooth_hooks.errors import EngineError


def check_settings(settings: StepSettings, options: Mapping[str, Any], optimizer: str) -> None:
    """Refuse settings that the step could not apply, before anything changes.

    Args:
        options: of the optimizer, by their names in a recipe, with their values.
        optimizer: its name, for messages.

    Raises:
        EngineError: an option that the optimizer does not have, or a number that makes no sense.
    """
    for name, value in settings.optimizer.items():
        if name not in options:
            raise EngineError(
                f"step: the optimizer {optimizer} has no option {name!r}",
                action=f"its options are {', '.join(sorted(options))}",
            )
        old = options[name]
        if isinstance(old, tuple) != isinstance(value, tuple) or (isinstance(old, tuple) and len(old) != len(value)):  # type: ignore[arg-type]
            raise EngineError(f"step: {name} is {value!r}", action=f"give it the shape of {old!r}")
        _check(name, value if isinstance(value, tuple) else (value,), below=1.0 if name in ("betas", "momentum") else 0)
    for name, number in (("learning_rate", settings.learning_rate), ("max_grad_norm", settings.max_grad_norm)):
        if number is not None:
            _check(name, (number,))


def _check(name: str, values: tuple[float, ...], below: float = 0.0) -> None:
    for value in values:
        if not math.isfinite(value) or value < 0 or (below and value >= below):
            bound = f"a number from 0 to below {below:g}" if below else "a finite number, 0 or more"
            raise EngineError(f"step: {name} is {value}", action=f"give {bound}")
