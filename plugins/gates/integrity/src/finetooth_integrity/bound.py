"""Gate `bound`: a metric lies inside a bound."""

from __future__ import annotations

import math

from finetooth_hooks import Candidate, Options, RecipeError


class BoundOptions(Options):
    """Options of the gate `bound`."""

    metric: str
    """The metric, as a run reports it: `eval/loss`."""
    min: float | None = None
    """Smallest allowed value. Left out, any is allowed."""
    max: float | None = None
    """Largest allowed value. Left out, any is allowed."""


class BoundGate:
    """`checkpoints.Gate`: `min <= metric <= max`. A metric that was not measured, or is NaN, does not pass."""

    def __init__(self, options: BoundOptions) -> None:
        self._options = options

    def check(self, candidate: Candidate) -> str:
        """Says what the metric is and what the bound."""
        name, low, high = self._options.metric, self._options.min, self._options.max
        value = candidate.metrics.get(name)
        if value is None:
            there = ", ".join(sorted(candidate.metrics)) or "none"
            return f"the metric {name} was not measured (there are: {there})"
        if math.isnan(value):
            return f"the metric {name} is NaN"
        if low is not None and value < low:
            return f"the metric {name} is {value:g}, below {low:g}"
        if high is not None and value > high:
            return f"the metric {name} is {value:g}, above {high:g}"
        return ""


def build(options: BoundOptions) -> BoundGate:
    """Builder of the gate `bound`.

    Raises:
        RecipeError: neither min nor max is set, or nothing fits between them.
    """
    low, high = options.min, options.max
    if low is None and high is None:
        raise RecipeError("checkpoint.gates", "bound has neither `min` nor `max`", action="give one of them")
    if low is not None and high is not None and low > high:
        raise RecipeError("checkpoint.gates", f"bound: no number lies between {low:g} and {high:g}", action="swap them")
    return BoundGate(options)
