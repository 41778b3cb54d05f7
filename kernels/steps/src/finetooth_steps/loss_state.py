"""The state that a loss carries from step to step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from finetooth_hooks import EngineError, LossSpec
from finetooth_hooks import arrays as xp


def checked_state(spec: LossSpec, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The state a loss returned, as plain numbers and NumPy arrays.

    Raises:
        EngineError: a loss that does not see the whole step changed its state, which would depend on the layout.
    """
    state = {name: _plain(value) for name, value in after.items()}
    if spec.together != "step":
        same = state.keys() == before.keys() and all(np.array_equal(state[k], before[k]) for k in state)
        if state and not same:
            raise EngineError(
                f"loss {spec.name!r} returned a state, but it is evaluated per {spec.together}: its state would depend "
                "on the layout",
                action='declare together="step" in its entry',
            )
        return dict(before)
    return state


def _plain(value: Any) -> Any:
    if not hasattr(value, "dtype"):  # the arrays and scalars of every library have one
        return value
    array = xp.to_numpy(value)
    return array.item() if array.ndim == 0 else array
