"""The answer of a loader or a source to a reference."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """A loader's or source's answer to "is this reference yours?".

    Attributes:
        strength: 2 for an exact name or a file of its own type, 1 for a general pattern; the strongest wins, a tie is
            an error.
        reason: shown in the plan.
    """

    strength: int
    reason: str
