"""Releases: a registry's versions as a release gate sees them, and its verdict."""

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
        folder: folder with its registered files, checked against their digests.
        record: the signed statement: base, recipe, data, plugins, environment, parents.
        metrics: the latest value of each metric, by name (`eval/loss`, `exact_match/accuracy`).
        answers: saved answers of each evaluator, one mapping per row, in the order of the rows.
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
    """A release gate's decision.

    Attributes:
        passed: whether the version may be released.
        reason: one line, for the record of the decision.
        evidence: numbers and names behind the decision, as JSON values. A verdict that did not pass and has no evidence
            means that a measurement is still missing: the version is held, not rejected.
    """

    passed: bool
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


class ReleaseGate(Protocol):
    """Decides whether a version may enter a channel of a registry."""

    def judge(self, candidate: ReleaseVersion, predecessor: ReleaseVersion | None) -> Verdict:
        """Decide. The same versions give the same verdict: the gate uses no clock and no unseeded randomness.

        Args:
            candidate: the version to release.
            predecessor: the channel's current version; None if it has none.
        """
        ...
