"""Releases: what a release gate sees of a registry's versions, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class ReleaseVersion:
    """A version of a model in a registry.

    Attributes:
        name: of the model.
        number: of the version, from 0.
        folder: its files as they were registered, checked against their digests.
        record: the statement that was signed: base, recipe, data, plugins, environment, parents.
        metrics: what was measured, by name (`eval/loss`, `exact_match/accuracy`); the latest measurement of each.
        answers: kept answers of each evaluator, one mapping for each row, in the order of the rows.
        signers: names of trusted keys whose signatures of the record are valid.
    """

    name: str
    number: int
    folder: Path
    record: Mapping[str, Any]
    metrics: Mapping[str, float] = field(default_factory=dict)
    answers: Mapping[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)
    signers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What a release gate decides.

    Attributes:
        passed: whether the version may be released.
        reason: one line, for the record of the decision.
        evidence: numbers and names that the decision was made from; JSON values. A verdict that did not pass and has
            none says that something is still missing: the version is held, not rejected.
    """

    passed: bool
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


class ReleaseGate(Protocol):
    """Decides whether a version may enter a channel of a registry."""

    def judge(self, candidate: ReleaseVersion, predecessor: ReleaseVersion | None) -> Verdict:
        """Decide. The same versions give the same verdict: no clock, no randomness that is not seeded.

        Args:
            candidate: the version that would enter the channel.
            predecessor: the version that the channel holds now; None if it holds none.
        """
        ...
