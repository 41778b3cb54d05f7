"""A loss that is NaN or infinite is refused, and the data to blame are named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from finetooth_hooks import Datum, LossSpec, NotFinite
from finetooth_hooks import arrays as xp

from finetooth_steps.micro_batches import MicroBatch


def check_finite(
    objective: xp.Array,
    spec: LossSpec,
    *,
    data: Sequence[Datum],
    batch: MicroBatch,
    outputs: Mapping[str, xp.Array],
    step: int,
    action: str,
) -> None:
    """Checks that a micro-batch's loss is finite.

    Args:
        objective: scalar, a micro-batch's part of the loss.
        data: of the call.
        batch: the loss's view of them.
        outputs: its inputs, (S, ...) each.
        step: optimizer steps done.
        action: what a user of this engine can do about it.

    Raises:
        NotFinite: `objective` is not finite; names the data whose own outputs are not, or all that the loss saw.
    """
    value = xp.item(objective)
    if math.isfinite(value):
        return
    rows = [row for s, row in enumerate(batch.rows) if not all(_finite(of[s]) for of in outputs.values())]
    names = [str(data[row].id or row) for row in rows or batch.rows]
    named = ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    raise NotFinite(
        f"loss {spec.name!r} is {value} at step {step + 1}, with the data {named}", action=action, rows=tuple(names)
    )


def _finite(values: xp.Array) -> bool:
    return bool(xp.item(xp.all(xp.isfinite(values))))
