"""A loss computed here, from log-probabilities that a server gave, and its gradient for them.

The whole step is one rectangle, as in an engine with enough memory; each contribution is divided by the normalizer of
the step. So a loss reads the same numbers as with a local engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from finetooth_hooks import Datum, LossSpec
from finetooth_steps.data_checks import check_fields
from finetooth_steps.loss_state import checked_state
from finetooth_steps.micro_batches import one_batch
from finetooth_steps.normalizers import count_normalizers
from finetooth_steps.not_finite import check_finite
from finetooth_steps.outputs import per_datum, side_by_side
from finetooth_steps.rectangles import loss_data
from finetooth_steps.totals import Totals
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Evaluated:
    """Result of a loss.

    Attributes:
        totals: of the loss.
        grads: dL/dlogprob per example, float32, in the shape of its targets.
        state: of the loss, after the call.
    """

    totals: Totals
    grads: tuple[Array, ...]
    state: Mapping[str, Any] = field(default_factory=dict)


def evaluate(
    spec: LossSpec,
    data: Sequence[Datum],
    outputs: Mapping[str, Sequence[Array]],
    *,
    counts: Mapping[str, float] | None = None,
    state: Mapping[str, Any] | None = None,
    step: int = 0,
) -> Evaluated:
    """Evaluate a loss and differentiate it.

    Args:
        outputs: `logprobs` and `logprobs@ROLE`, each an array per example.
        counts: normalizers of the whole step; default: counted over `data`.
        state: of the loss, before the call.
        step: number of the step, for messages.

    Raises:
        DataError: the loss cannot read these examples in one rectangle.
        NotFinite: the loss is not finite; names the examples.
        EngineError: it returns nothing, or divides by a normalizer that is 0 or missing.
    """
    check_fields(data)
    batch = one_batch(data, whole=True)
    before = {name: torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for name, v in (state or {}).items()}
    tensors = {name: _tensor(side_by_side(batch, arrays)) for name, arrays in outputs.items()}
    logprobs = tensors["logprobs"].requires_grad_()
    result = spec.fn(tensors, loss_data(data, batch, _tensor), before)
    totals = Totals(spec, count_normalizers(data) if counts is None else counts)
    objective = totals.add(result, logprobs.new_zeros(()))
    action = "look at these rows, or lower optimizer.learning_rate"
    check_finite(objective, spec, data=data, batch=batch, outputs=tensors, step=step, action=action)
    slope = torch.zeros_like(logprobs)
    if objective.requires_grad:
        (gradient,) = torch.autograd.grad(objective, logprobs, allow_unused=True)
        slope = slope if gradient is None else gradient
    slopes = per_datum(data, batch, slope)
    return Evaluated(totals, tuple(slopes[n] for n in range(len(data))), checked_state(spec, state or {}, result.state))


def _tensor(values: Array) -> torch.Tensor:
    """float32: losses do not depend on the server's precision."""
    return torch.from_numpy(values.astype(np.float32) if values.dtype.kind == "f" else values)
