"""A loss computed here, from log-probabilities that a server gave, and its gradient for them.

The whole step is one rectangle, as an engine lays it out that has room for it; each contribution is divided by the
normalizer of the step. So a loss sees what it would see of a local engine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from finetooth_hooks import DataError, Datum, EngineError, LossData, LossSpec, NotFinite
from finetooth_hooks.losses import LossResult
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Evaluated:
    """What a loss gave.

    Attributes:
        loss: normalised over the step.
        components: normalised, before their weights.
        grads: dL/dlogprob per datum, float32, shaped as its targets.
        state: of the loss, afterwards.
    """

    loss: float
    components: Mapping[str, float]
    metrics: Mapping[str, float]
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
        outputs: `logprobs` and `logprobs@ROLE`, each an array for each datum.
        counts: normalizers of the whole step; default: counted over `data`.
        state: of the loss, before.
        step: number of the step, for messages.

    Raises:
        NotFinite: the loss is not finite; names the data.
        EngineError: it gives nothing, or divides by a normalizer that is 0 or not given.
    """
    counts = normalizers(data) if counts is None else counts
    before = {name: torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for name, v in (state or {}).items()}
    given = {name: torch.from_numpy(_padded(list(arrays)).astype(np.float32)) for name, arrays in outputs.items()}
    logprobs = given["logprobs"].requires_grad_()
    result = spec.fn(given, _loss_data(data), before)
    if not result.contributions:
        raise EngineError(f"loss {spec.name!r} returned no contribution", action="return at least one")
    components: dict[str, float] = {}
    loss, parts = 0.0, []
    for name, part in result.contributions.items():
        total = part.total if isinstance(part.total, torch.Tensor) else logprobs.new_tensor(float(part.total))
        normalised = total / _divisor(spec, part.per, counts, float(total.detach()))
        parts.append((part.weight * normalised).reshape(()))
        components[name] = float(normalised.detach())
        loss += part.weight * components[name]
    objective = torch.stack(parts).sum() if len(parts) > 1 else parts[0]
    if not math.isfinite(float(objective.detach())):
        bad = [datum.id or str(n) for n, datum in enumerate(data) if not np.isfinite(outputs["logprobs"][n]).all()]
        named = bad or [datum.id or str(n) for n, datum in enumerate(data)]
        raise NotFinite(
            f"loss {spec.name!r} is {float(objective.detach())} at step {step + 1}, with the data "
            + ", ".join(map(repr, named[:5])),
            action="look at these rows, or lower optimizer.learning_rate",
            rows=tuple(named),
        )
    slope = torch.zeros_like(logprobs)
    if objective.requires_grad:
        (found,) = torch.autograd.grad(objective, logprobs, allow_unused=True)
        slope = slope if found is None else found
    grads = tuple(slope[n, : len(datum)].numpy() for n, datum in enumerate(data))
    return Evaluated(loss, components, _metrics(result), grads, _state(spec, state or {}, result))


def normalizers(data: Sequence[Datum]) -> dict[str, float]:
    """Of a whole step: the sum of weights, targets that count, sequences with at least one, groups; `none` is 1."""
    weights = [datum.fields.get("weights") for datum in data]
    given = [
        float(datum.mask.sum() if w is None else w[datum.mask].sum(dtype=np.float64))
        for datum, w in zip(data, weights, strict=True)
    ]
    return {
        "weights": sum(given),
        "tokens": float(sum(int(datum.mask.sum()) for datum in data)),
        "sequences": float(sum(bool(datum.mask.any()) for datum in data)),
        "groups": float(_groups(data)[-1] + 1) if data else 0.0,
        "none": 1.0,
    }


def _divisor(spec: LossSpec, per: str, counts: Mapping[str, float], total: float) -> float:
    if per == "none":
        return 1.0
    if per not in counts:
        raise EngineError(
            f"loss {spec.name!r} normalises by {per!r}, which the normalizer given does not hold",
            action=f"pass normalizer={{{per!r}: ...}} with the total of the whole step",
        )
    if counts[per]:
        return float(counts[per])
    if total == 0.0:
        return 1.0  # nothing counts in this step, and nothing was added up
    raise EngineError(
        f"loss {spec.name!r}: the normalizer {per!r} of the step is 0, but the data add up to something",
        action="give the step weights whose sum is not 0",
    )


def _loss_data(data: Sequence[Datum]) -> LossData:
    names = sorted({name for datum in data for name in datum.fields} - {"weights"})
    scalars = sorted({name for datum in data for name in datum.scalars})
    for datum in data:
        lacking = [name for name in names if name not in datum.fields] + [s for s in scalars if s not in datum.scalars]
        if lacking:
            raise DataError(datum.id or "a datum", f"it has no {lacking[0]!r}, which others have", action="give it")
    targets = [np.where(_like(datum.mask, datum.targets), datum.targets, 0) for datum in data]
    weights = [np.asarray(d.fields.get("weights", d.mask), dtype=np.float32) for d in data]
    return LossData(
        mask=torch.from_numpy(_padded([datum.mask for datum in data])),
        targets=torch.from_numpy(_padded(targets)),
        fields={
            "weights": torch.from_numpy(_padded(weights)),
            **{n: torch.from_numpy(_padded([d.fields[n].astype(np.float32) for d in data])) for n in names},
        },
        scalars={name: torch.tensor([float(datum.scalars[name]) for datum in data]) for name in scalars},
        group=torch.tensor(_groups(data), dtype=torch.int64),
    )


def _groups(data: Sequence[Datum]) -> list[int]:
    """Index of each datum's group; one without a group is its own."""
    found: list[int] = []
    for n, datum in enumerate(data):
        same = n > 0 and datum.group is not None and datum.group == data[n - 1].group
        found.append(found[-1] + (not same) if found else 0)
    return found


def _padded(rows: list[Array]) -> Array:
    """(S, T, ...) with zeros where a row is shorter."""
    longest = max((len(row) for row in rows), default=0)
    return np.stack([np.pad(row, ((0, longest - len(row)), *[(0, 0)] * (row.ndim - 1))) for row in rows])


def _like(mask: Array, targets: Array) -> Array:
    return mask.reshape(mask.shape + (1,) * (targets.ndim - 1))


def _metrics(result: LossResult) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, metric in result.metrics.items():
        total, count = float(metric.total), float(metric.count)
        if metric.reduce != "mean":
            found[name] = total
        elif count:
            found[name] = total / count
    return found


def _state(spec: LossSpec, before: Mapping[str, Any], result: LossResult) -> dict[str, Any]:
    """The loss's state as numbers and NumPy arrays; only one that sees the whole step may change it."""
    after = {name: _plain(value) for name, value in result.state.items()}
    if spec.together == "step":
        return after
    if after and not (after.keys() == before.keys() and all(np.array_equal(after[k], before[k]) for k in after)):
        raise EngineError(
            f"loss {spec.name!r} returned a state, but it is evaluated per {spec.together}",
            action='declare together="step" in its entry',
        )
    return dict(before)


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.detach().numpy()
    if isinstance(value, np.ndarray | np.generic):
        return value.item() if value.ndim == 0 else np.asarray(value)
    return value
