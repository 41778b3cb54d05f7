"""The reward `number_match`: numbers as people write them, compared as decimals, not as text or floats."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import Any, Literal

from finetooth_hooks import Options
from pydantic import Field

from finetooth_rules.per_completion import ScoreWithColumn

NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?<=\d)(?:[eE][-+]?\d{1,3})?(?![\d])")
"""`12`, `1,234.5`, `-.5`, `3e8`; not the 2 of `x2`."""
SIGNS = str.maketrans({"\u2212": "-", "\u2013": "-", "\u00a0": " ", "\u202f": " "})


class NumberOptions(Options):
    """Options of the reward `number_match`."""

    column: str = "answer"
    """Column with the expected number; if it is a text, its last number (GSM8K: `... #### 72`)."""
    after: str = ""
    """Read only the text after the last occurrence of this in an answer (`####`); an answer without it scores 0."""
    pick: Literal["last", "first", "only"] = "last"
    """Which number of an answer counts; with `only`, an answer with several numbers scores 0."""
    tolerance: float = Field(default=0.0, ge=0)
    """Largest allowed difference."""
    relative: float = Field(default=0.0, ge=0)
    """Largest allowed difference, as a share of the expected number; the larger of the two limits applies."""


def numbers(text: str) -> list[Decimal]:
    """All numbers in a text, in order."""
    values = []
    for match in NUMBER.finditer(text.translate(SIGNS)):
        try:
            values.append(Decimal(match[0].replace(",", "")))
        except InvalidOperation:  # pragma: no cover - the pattern lets nothing else through
            continue
    return values


def score(completion: str, expected: Any, *, options: NumberOptions) -> float | None:
    """1 or 0; None if the row expects no number."""
    wanted = numbers(str(expected))
    if expected is None or not wanted:
        return None
    if options.after:
        _, marker, completion = completion.rpartition(options.after)
        if not marker:
            return 0.0
    answered = numbers(completion)
    if not answered or (options.pick == "only" and len(answered) > 1):
        return 0.0
    apart = abs(answered[0 if options.pick == "first" else -1] - wanted[-1])
    allowed = max(Decimal(str(options.tolerance)), Decimal(str(options.relative)) * abs(wanted[-1]))
    return float(apart <= allowed)


def build(options: NumberOptions) -> ScoreWithColumn:
    return ScoreWithColumn("number_match", options.column, partial(score, options=options))
