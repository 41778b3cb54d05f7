"""From the contributions of micro-batches, calls and ranks to one loss.

Each component is divided by its normalizer, counted over the whole optimizer step before the first micro-batch, so the
sum over micro-batches is the loss of the step whatever the layout was. What was added up before it was divided is kept
too (`LossTotals`): several calls of a step, or several ranks, give the loss of the step once theirs are merged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from finetooth_hooks import Contribution, EngineError, LossResult, LossSpec, LossTotals, Metric
from finetooth_hooks import arrays as xp
from finetooth_hooks.engine import Counts

from finetooth_steps.normalizers import divisor


class Totals:
    """Sums up a loss over the micro-batches of one call.

    What micro-batches add stays where the engine computes; it comes to the host together, when it is first asked for.

    Args:
        spec: whose results are added; named in errors.
        counts: normalizers by name.
    """

    def __init__(self, spec: LossSpec, counts: Counts) -> None:
        self.spec, self.counts = spec, counts
        self._components: dict[str, float] = {}
        self._contributions: dict[str, Contribution] = {}
        self._metrics: dict[str, Metric] = {}
        self._finite = True
        self._given: dict[str, Contribution] = {}  # by component, its normalizer and weight
        self._pending: list[_Added] = []

    def add(self, result: LossResult, like: xp.Array) -> xp.Array:
        """Take in one result.

        Args:
            like: any float array of the engine; gives library, type and device to a total that is a plain number.

        Returns:
            scalar: this micro-batch's part of the normalised loss, with its graph.

        Raises:
            EngineError: the loss gives nothing, divides by what was not counted, or gives a component another
                normalizer or weight than before.
        """
        if not result.contributions:
            raise EngineError(f"loss {self.spec.name!r} returned no contribution", action="return at least one")
        parts = []
        added = _Added()
        for name, part in result.contributions.items():
            plain = Contribution(0.0, part.per, float(part.weight))
            _check_alike(self.spec.name, name, self._given.setdefault(name, plain), plain)
            total = _as_array(part.total, like)
            normalised = total / divisor(self.spec.name, part.per, self.counts, total)
            parts.append(xp.reshape(part.weight * normalised, ()))
            added.components[name] = _apart(total), _apart(normalised)
        for name, metric in result.metrics.items():
            added.metrics[name] = Metric(_apart(metric.total), _apart(metric.count), metric.reduce)
        objective = xp.sum(xp.stack(parts)) if len(parts) > 1 else parts[0]
        added.objective = _apart(objective)
        self._pending.append(added)
        return objective

    @property
    def finite(self) -> bool:
        """Whether each micro-batch's part is finite."""
        self._settle()
        return self._finite

    @property
    def loss(self) -> float:
        """The weighted sum of the components so far."""
        self._settle()
        return _weighted(self._contributions, self._components)

    @property
    def components(self) -> dict[str, float]:
        """Normalised, before their weights."""
        self._settle()
        return dict(self._components)

    @property
    def metrics(self) -> dict[str, float]:
        """Combined over the micro-batches; a mean over nothing is left out."""
        self._settle()
        return _values(self._metrics)

    @property
    def plain(self) -> LossTotals:
        """The totals, for merging with those of other calls and ranks."""
        self._settle()
        return LossTotals(self.spec.name, dict(self._contributions), dict(self._metrics))

    def _settle(self) -> None:
        """Move pending values to the host, and sum them in order, in float64."""
        pending, self._pending = self._pending, []
        numbers = iter(_read([value for added in pending for value in added.values]))
        for added in pending:
            for name in added.components:
                total, normalised = next(numbers), next(numbers)
                self._components[name] = self._components.get(name, 0.0) + normalised
                _add_contribution(self.spec.name, self._contributions, name, replace(self._given[name], total=total))
            for name, metric in added.metrics.items():
                _add_metric(self._metrics, name, Metric(next(numbers), next(numbers), metric.reduce))
            self._finite = self._finite and math.isfinite(next(numbers))


@dataclass
class _Added:
    """One micro-batch's part; arrays, or plain numbers.

    Attributes:
        components: total and normalised total by name.
        objective: its part of the loss.
    """

    components: dict[str, tuple[xp.Array, xp.Array]] = field(default_factory=dict)
    metrics: dict[str, Metric] = field(default_factory=dict)
    objective: xp.Array = 0.0

    @property
    def values(self) -> list[xp.Array]:
        """In the order in which they are added up."""
        of_components = [value for pair in self.components.values() for value in pair]
        of_metrics = [value for metric in self.metrics.values() for value in (metric.total, metric.count)]
        return [*of_components, *of_metrics, self.objective]


def _apart(value: xp.Array) -> xp.Array:
    """A scalar without its graph; a plain number stays one."""
    return value if isinstance(value, bool | int | float) else xp.reshape(xp.stop_gradient(value), ())


def _read(values: Sequence[xp.Array]) -> list[float]:
    """Scalars as numbers of the host: those of one type and place come together."""
    numbers = [0.0] * len(values)
    alike: dict[str, list[int]] = {}
    for at, value in enumerate(values):
        if hasattr(value, "dtype"):
            alike.setdefault(f"{type(value)} {value.dtype} {getattr(value, 'device', '')}", []).append(at)
        else:
            numbers[at] = float(value)
    for key, places in alike.items():
        if "bfloat16" in key:  # which NumPy does not have
            for at in places:
                numbers[at] = xp.item(values[at])
            continue
        together = xp.to_numpy(xp.stack([values[at] for at in places]))
        for at, number in zip(places, together, strict=True):
            numbers[at] = float(number)
    return numbers


@dataclass(frozen=True)
class MergedLoss:
    """The loss of a step.

    Attributes:
        loss: the weighted sum of the components.
        components: normalised, before their weights.
        metrics: combined; a mean over nothing is left out.
        totals: of all calls or ranks together.
    """

    loss: float
    components: Mapping[str, float]
    metrics: Mapping[str, float]
    totals: LossTotals


def merge_totals(several: Sequence[LossTotals], counts: Counts) -> MergedLoss:
    """The loss of a step from the totals of its calls or ranks.

    A loss with `together: step` sees only what one call gives it: its totals add up to the step's loss only if the
    loss is a sum over what it sees.

    Args:
        several: at least one, of one loss.
        counts: normalizers of the whole step.

    Raises:
        EngineError: nothing to merge, totals of several losses, a component with several normalizers or weights, or a
            normalizer that is not given, or 0.
    """
    names = sorted({totals.loss for totals in several})
    if len(names) != 1:
        origin = f"of the losses {', '.join(names)}" if names else "of no call"
        raise EngineError(f"the totals {origin} cannot be merged", action="give those of one loss, from every call")
    contributions: dict[str, Contribution] = {}
    metrics: dict[str, Metric] = {}
    for totals in several:
        for name, part in totals.contributions.items():
            _add_contribution(names[0], contributions, name, part)
        for name, metric in totals.metrics.items():
            _add_metric(metrics, name, metric)
    components = {
        name: part.total / divisor(names[0], part.per, counts, part.total) for name, part in contributions.items()
    }
    merged = LossTotals(names[0], contributions, metrics)
    return MergedLoss(_weighted(contributions, components), components, _values(metrics), merged)


def _add_contribution(loss: str, into: dict[str, Contribution], name: str, more: Contribution) -> None:
    """Add plain numbers to the component `name`."""
    before = into.get(name, Contribution(0.0, more.per, more.weight))
    _check_alike(loss, name, before, more)
    into[name] = Contribution(before.total + more.total, more.per, more.weight)


def _check_alike(loss: str, name: str, before: Contribution, more: Contribution) -> None:
    """
    Raises:
        EngineError: a component has another normalizer or weight than before.
    """
    if (before.per, before.weight) != (more.per, more.weight):
        raise EngineError(
            f"loss {loss!r} gives its component {name!r} per {before.per} with weight {before.weight:g}, and per "
            f"{more.per} with weight {more.weight:g}, in one step",
            action="give a component one normalizer and one weight",
        )


def _add_metric(into: dict[str, Metric], name: str, more: Metric) -> None:
    """Combine plain numbers with the metric `name`."""
    before = into.get(name)
    if before is None:
        into[name] = more
    elif more.reduce in ("mean", "sum"):
        into[name] = Metric(before.total + more.total, before.count + more.count, more.reduce)
    else:
        pick = max if more.reduce == "max" else min
        into[name] = Metric(pick(before.total, more.total), before.count + more.count, more.reduce)


def _weighted(contributions: Mapping[str, Contribution], components: Mapping[str, float]) -> float:
    return sum(contributions[name].weight * value for name, value in components.items())


def _values(metrics: Mapping[str, Metric]) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, metric in metrics.items():
        if metric.reduce == "mean" and metric.count == 0:
            continue
        values[name] = metric.total / metric.count if metric.reduce == "mean" else metric.total
    return values


def _as_array(total: xp.Array, like: xp.Array) -> xp.Array:
    """`total` with its graph; a plain number, or a constant of NumPy, in the type of `like`."""
    number = isinstance(total, bool | int | float)
    if not number and xp.library(total) is xp.library(total, like):
        return total
    return xp.full_like(like, float(total))
