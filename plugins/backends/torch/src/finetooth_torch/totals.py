"""From the contributions of micro-batches to one loss.

Each component is divided by its normalizer, counted over the whole optimizer step before the first micro-batch, so the
sum over micro-batches is the loss of the step whatever the layout was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from finetooth_hooks import EngineError, LossResult, LossSpec, Metric
from finetooth_hooks.engine import Counts
from torch import Tensor


class Totals:
    """Sums up a loss over the micro-batches of one call.

    Args:
        spec: whose results are added; named in errors.
        counts: normalizers by name.
    """

    def __init__(self, spec: LossSpec, counts: Counts) -> None:
        self.spec = spec
        self._counts = counts
        self._components: dict[str, float] = {}
        self._weights: dict[str, float] = {}
        self._metrics: dict[str, tuple[str, float, float]] = {}

    def add(self, result: LossResult, reference: Tensor) -> Tensor:
        """Take in one result.

        Args:
            reference: any tensor of the outputs; gives dtype and device to a loss that is a plain number.

        Returns:
            what this micro-batch adds to the normalised loss, with its graph.
        """
        parts = []
        for name, part in result.contributions.items():
            total = part.total if isinstance(part.total, Tensor) else reference.new_tensor(float(part.total))
            normalised = total / self._divisor(part.per, total)
            parts.append(part.weight * normalised)
            self._components[name] = self._components.get(name, 0.0) + _number(normalised)
            self._weights[name] = part.weight
        for name, metric in result.metrics.items():
            self._metrics[name] = _merged(self._metrics.get(name), metric)
        if not parts:
            raise EngineError(f"loss {self.spec.name!r} returned no contribution", action="return at least one")
        return torch.stack([part.reshape(()) for part in parts]).sum() if len(parts) > 1 else parts[0].reshape(())

    def _divisor(self, per: str, total: Tensor) -> float:
        if per == "none":
            return 1.0
        if per not in self._counts:
            raise EngineError(
                f"loss {self.spec.name!r} normalises by {per!r}, which the normalizer given does not hold",
                action=f"pass normalizer={{{per!r}: ...}} with the total of the whole step",
            )
        count = float(self._counts[per])
        if count != 0.0:
            return count
        if _number(total) == 0.0:
            return 1.0  # nothing counts in this step, and nothing was added up
        raise EngineError(
            f"loss {self.spec.name!r}: the normalizer {per!r} of the step is 0, but the data add up to something",
            action="give the step weights whose sum is not 0",
        )

    @property
    def loss(self) -> float:
        """The weighted sum of the components so far."""
        return sum(self._weights[name] * value for name, value in self._components.items())

    @property
    def components(self) -> dict[str, float]:
        """Normalised, before their weights."""
        return dict(self._components)

    @property
    def metrics(self) -> dict[str, float]:
        """Combined over the micro-batches; a mean over nothing is left out."""
        values: dict[str, float] = {}
        for name, (reduce, total, count) in self._metrics.items():
            if reduce == "mean" and count == 0:
                continue
            values[name] = total / count if reduce == "mean" else total
        return values


def _merged(before: tuple[str, float, float] | None, metric: Metric) -> tuple[str, float, float]:
    total, count = _number(metric.total), _number(metric.count)
    if before is None:
        return metric.reduce, total, count
    if metric.reduce in ("mean", "sum"):
        return metric.reduce, before[1] + total, before[2] + count
    pick = max if metric.reduce == "max" else min
    return metric.reduce, pick(before[1], total), before[2] + count


def _number(value: Any) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else float(value)


def is_finite(value: Tensor) -> bool:
    """Whether a scalar is neither NaN nor infinite."""
    return math.isfinite(float(value.detach()))


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
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        return array.item() if array.ndim == 0 else array
    return value
