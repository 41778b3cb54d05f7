"""The release gates `at_least`, `not_worse` and `signed`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
from finetooth_hooks import Options, ReleaseVersion, Verdict
from pydantic import Field, model_validator

from finetooth_registry.records import MADE_OF

Row = Mapping[str, Any]
RESAMPLES = 10_000
"""Draws of the paired bootstrap."""


class AtLeastOptions(Options):
    """Options of `at_least`."""

    metric: str
    """The metric, as `ft registry show` lists it: `exact_match/accuracy`."""
    min: float | None = None
    """The lowest allowed value; null: none."""
    max: float | None = None
    """The highest allowed value; null: none."""

    @model_validator(mode="after")
    def _has_a_bound(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        return self


class NotWorseOptions(Options):
    """Options of `not_worse`."""

    metric: str
    """The metric, as `ft registry show` lists it."""
    higher_is_better: bool = True
    """False for losses."""
    tolerance: float = Field(default=0.0, ge=0)
    """How much worse it may be."""
    answers: str = ""
    """An evaluator whose kept answers both versions have. The gate then looks at rows that only one of the two answers
    right, and holds the version back if the predecessor has significantly more of them (McNemar's exact test, McNemar
    1947). Empty: the metric alone decides."""
    test: Literal["mcnemar", "bootstrap"] = "mcnemar"
    """For answers: `mcnemar` counts rows that are right or wrong. `bootstrap` is for scores in between: it resamples
    the differences between both versions' scores of a row 10,000 times, the same way each time, and holds the version
    back if the upper end of the interval of their mean lies below -`tolerance` (paired percentile bootstrap, Efron
    1979)."""
    significance: float = Field(default=0.05, gt=0, lt=1)
    """The level of that test, one-sided."""


class SignedOptions(Options):
    """Options of `signed`."""

    by: tuple[str, ...] = ()
    """Names of trusted keys that must all have signed; empty: any."""
    least: int = Field(default=1, ge=1)
    """How many trusted keys must have signed."""


class AtLeast:
    """Compares a metric with bounds."""

    def __init__(self, options: AtLeastOptions) -> None:
        self._options = options

    def judge(self, candidate: ReleaseVersion, predecessor: ReleaseVersion | None) -> Verdict:
        """Pass a version whose metric lies inside the bounds."""
        metric, low, high = self._options.metric, self._options.min, self._options.max
        value = candidate.metrics.get(metric)
        if value is None:
            return Verdict(False, f"{metric} was not measured")
        inside = (low is None or value >= low) and (high is None or value <= high)  # NaN is not
        bounds = " and ".join(
            text for text in (low is not None and f"at least {low:g}", high is not None and f"at most {high:g}") if text
        )
        evidence = {"metric": metric, "value": _number(value), "min": low, "max": high}
        return Verdict(inside, f"{metric} is {value:.6g}, {bounds} is required", evidence)


class NotWorse:
    """Compares a metric with the predecessor's, or pairs of answers."""

    def __init__(self, options: NotWorseOptions) -> None:
        self._options = options

    def judge(self, candidate: ReleaseVersion, predecessor: ReleaseVersion | None) -> Verdict:
        """Pass the first version of a channel, and one that is not worse than the version there."""
        options = self._options
        value = candidate.metrics.get(options.metric)
        if value is None:
            return Verdict(False, f"{options.metric} was not measured")
        if predecessor is None:
            return Verdict(True, "the channel holds no version yet", {"value": _number(value)})
        before = predecessor.metrics.get(options.metric)
        if before is None:
            return Verdict(False, f"{options.metric} of version {predecessor.number} was not measured")
        if options.answers:
            return self._by_pairs(candidate, predecessor)
        worse = before - value if options.higher_is_better else value - before
        evidence = {"metric": options.metric, "value": _number(value), "before": _number(before)}
        text = f"{options.metric} is {value:.6g}, version {predecessor.number} has {before:.6g}"
        return Verdict(worse <= options.tolerance, text, evidence)  # NaN is worse than any tolerance

    def _by_pairs(self, candidate: ReleaseVersion, predecessor: ReleaseVersion) -> Verdict:
        name = self._options.answers
        now, then = candidate.answers.get(name, ()), predecessor.answers.get(name, ())
        if not now or [row.get("id") for row in now] != [row.get("id") for row in then]:
            return Verdict(False, f"the two versions have no answers of {name} to the same rows")
        if self._options.test == "bootstrap":
            return self._by_bootstrap(name, now, then)
        gained, lost = _changed(now, then)
        chance = binomial_tail(lost, gained + lost)
        evidence = {"evaluator": name, "rows": len(now), "gained": gained, "lost": lost, "p": chance}
        text = f"{lost} rows lost and {gained} gained of {len(now)} (p = {chance:.3g})"
        return Verdict(not (lost > gained and chance < self._options.significance), text, evidence)

    def _by_bootstrap(self, name: str, now: Sequence[Row], then: Sequence[Row]) -> Verdict:
        changes = np.array([float(new["score"]) - float(old["score"]) for new, old in zip(now, then, strict=True)])
        draws = np.random.Generator(np.random.PCG64(len(changes)))
        means = [changes[draws.integers(0, len(changes), len(changes))].mean() for _ in range(RESAMPLES)]
        mean, level = float(changes.mean()), self._options.significance
        low, high = (float(np.quantile(means, share)) for share in (level, 1 - level))
        evidence = {
            "evaluator": name,
            "rows": len(now),
            "mean": _number(mean),
            "low": _number(low),
            "high": _number(high),
        }
        text = f"the score changed by {mean:+.4g} ({low:+.4g} to {high:+.4g})"
        return Verdict(high >= -self._options.tolerance, text, evidence)  # NaN is worse than any tolerance


class Signed:
    """Counts trusted signatures."""

    def __init__(self, options: SignedOptions) -> None:
        self._options = options

    def judge(self, candidate: ReleaseVersion, predecessor: ReleaseVersion | None) -> Verdict:
        """Pass a version whose record names its origins and has enough trusted signatures."""
        about = candidate.record.get("predicate", {})
        unsaid = [name for name in MADE_OF if not about.get(name)]
        if unsaid and candidate.signers:
            text = f"its record does not say {', '.join(unsaid)}, so it would be refused where it is loaded"
            return Verdict(False, text, {"unsaid": unsaid})
        missing = sorted(set(self._options.by) - set(candidate.signers))
        if missing:
            return Verdict(False, f"not signed by {', '.join(missing)}")
        enough = len(candidate.signers) >= self._options.least
        text = f"signed by {', '.join(candidate.signers) or 'nobody that is trusted'}"
        return Verdict(enough, text, {"signers": list(candidate.signers)} if enough else {})  # more signatures may come


def binomial_tail(successes: int, trials: int) -> float:
    """The probability of at least this many successes in fair trials: the one-sided p-value of McNemar's exact test."""
    return float(sum(math.comb(trials, count) for count in range(successes, trials + 1)) / 2**trials)


def _changed(now: Sequence[Mapping[str, Any]], then: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """The numbers of rows that only the new version, and only the old one, answers right."""
    pairs = [(float(new["score"]) >= 1, float(old["score"]) >= 1) for new, old in zip(now, then, strict=True)]
    return sum(new and not old for new, old in pairs), sum(old and not new for new, old in pairs)


def _number(value: float) -> float | str:
    """The number, if JSON can represent it."""
    return value if math.isfinite(value) else str(value)
