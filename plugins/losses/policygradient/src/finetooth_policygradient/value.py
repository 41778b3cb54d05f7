"""`clipped_value`: the error of a critic.

With v the critic's value of a token, o that of the weights that sampled it (field `old_values`), R the return (field
`returns`) and w the token's weight, which includes all normalisation (field `token_weights`), the component `value` is
the sum of

    w / 2 max((v - R)^2, (clip(v, o - clip, o + clip) - R)^2)

so that a change of a value beyond `clip` from o has no gradient, like the policy's clip (Schulman et al., 2017,
arXiv:1707.06347, eq. 9; the clip is that of the authors' code, baselines/ppo2). If the field `value_offsets` has a
critic's initial values, v is their sum with the head's output.
"""

from __future__ import annotations

from functools import partial

from finetooth_hooks import Contribution, DataError, LossData, LossFn, LossResult, LossState, Metric, Options, Outputs
from finetooth_hooks import arrays as xp
from pydantic import Field


class ClippedValueOptions(Options):
    """Options of `clipped_value`."""

    clip: float | None = Field(default=0.2, gt=0)
    """How far a value may move from the old one; null: no limit."""


def build(options: ClippedValueOptions) -> LossFn:
    """Builder of `clipped_value`."""
    return partial(clipped_value, bound=options.clip)


def clipped_value(outputs: Outputs, data: LossData, state: LossState, *, bound: float | None) -> LossResult:
    """Computes the squared error of values, clipped around the old values.

    Args:
        outputs: `values` (S, T).
        data: fields `returns`, `old_values` and `token_weights`, (S, T), perhaps `value_offsets`.

    Raises:
        DataError: a field is missing.
    """
    for name in ("returns", "old_values", "token_weights"):
        if name not in data.fields:
            raise DataError("data", f"no field {name!r}", action=f"give every datum the field {name}")
    mask = data.mask
    values, offsets = xp.where(mask, outputs["values"], 0.0), data.fields.get("value_offsets")
    if offsets is not None:
        values = values + xp.where(mask, offsets, 0.0)
    returns, old, weights = (xp.where(mask, data.fields[n], 0.0) for n in ("returns", "old_values", "token_weights"))
    counts = xp.astype_like(mask, values)
    error = xp.square(values - returns)
    metrics = {"value/mean": Metric(xp.sum(xp.stop_gradient(values)), xp.sum(counts))}
    if bound is not None:
        clipped = xp.square(xp.clip(values, old - bound, old + bound) - returns)
        lost = xp.astype_like(xp.stop_gradient(clipped) > xp.stop_gradient(error), values) * counts
        metrics["value/clip_ratio"] = Metric(xp.sum(lost), xp.sum(counts))
        error = xp.maximum(error, clipped)
    metrics["value/error"] = Metric(xp.sum(xp.stop_gradient(error)), xp.sum(counts))
    return LossResult({"value": Contribution(xp.sum(weights * error) / 2, per="none")}, metrics)
