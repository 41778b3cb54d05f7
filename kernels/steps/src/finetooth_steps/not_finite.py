"""A loss or outputs that are NaN or infinite are refused, and the data to blame are named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from finetooth_hooks import Datum, LossSpec, NotFinite
from finetooth_hooks import arrays as xp
from numpy.typing import NDArray

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
    names = _names(data, rows or batch.rows)
    raise NotFinite(
        f"loss {spec.name!r} is {value} at step {step + 1}, with the data {_listed(names)}", action=action, rows=names
    )


def check_outputs(data: Sequence[Datum], outputs: Sequence[Mapping[str, NDArray[Any]]]) -> None:
    """Checks that a model's outputs are finite, which they are not after activations beyond 65,504 in fp16.

    Negative infinity passes: it is the logit of a token that the model excludes.

    Args:
        outputs: by name, of each datum.

    Raises:
        NotFinite: an output holds NaN or infinity; names the data with it.
    """
    for name in outputs[0] if outputs else ():
        rows = [row for row, of in enumerate(outputs) if not np.isfinite(np.max(of[name], initial=0.0))]
        if rows:
            names = _names(data, rows)
            raise NotFinite(
                f"the model's {name} are not finite, with the data {_listed(names)}",
                action="set train.precision to bf16 or fp32, or look for NaN in the weights",
                rows=names,
            )


def _names(data: Sequence[Datum], rows: Sequence[int]) -> tuple[str, ...]:
    return tuple(str(data[row].id or row) for row in rows)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _finite(values: xp.Array) -> bool:
    return bool(xp.item(xp.all(xp.isfinite(values))))
