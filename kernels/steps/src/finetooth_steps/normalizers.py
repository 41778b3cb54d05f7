"""Divisors of the components of a loss, counted over the whole step before the first micro-batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from finetooth_hooks import Datum, EngineError
from finetooth_hooks import arrays as xp
from finetooth_hooks.engine import Counts

from finetooth_steps.groups import group_indices


def count_normalizers(data: Sequence[Datum]) -> dict[str, float]:
    """The normalizers of a whole step: sum of weights and number of positions that count, sequences with at least one,
    groups; `none` is 1. With several targets a position, a weight per position counts once, one per target each."""
    weights = 0.0
    for datum in data:
        field = datum.fields.get("weights")
        weights += float(datum.mask.sum() if field is None else field[datum.mask].sum(dtype=np.float64))
    return {
        "weights": weights,
        "tokens": float(sum(int(datum.mask.sum()) for datum in data)),
        "sequences": float(sum(bool(datum.mask.any()) for datum in data)),
        "groups": float(group_indices(data)[-1] + 1) if data else 0.0,
        "none": 1.0,
    }


def divisor(loss: str, per: str, counts: Counts, total: xp.Array) -> float:
    """The divisor of a component.

    Args:
        loss: its name, for messages.
        per: the component's normalizer.
        counts: normalizers of the whole step; without `none`, that is 1.
        total: total of the component, a scalar; read only if the normalizer is 0.

    Raises:
        EngineError: `counts` does not hold the normalizer, or it is 0 while the component is not.
    """
    if per == "none":
        return float(counts.get(per, 1.0))
    if per not in counts:
        raise EngineError(
            f"loss {loss!r} normalises by {per!r}, which the normalizer given does not hold",
            action=f"pass normalizer={{{per!r}: ...}} with the total of the whole step",
        )
    count = float(counts[per])
    if count != 0.0:
        return count
    if xp.item(total) == 0.0:
        return 1.0  # nothing counts in this step, and nothing was added up
    raise EngineError(
        f"loss {loss!r}: the normalizer {per!r} of the step is 0, but the data add up to something",
        action="give the step weights whose sum is not 0",
    )
