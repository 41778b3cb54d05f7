"""The worker's side: math-verify, which keeps its own time limits by SIGALRM and so needs a main thread."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping

from math_verify import ExprExtractionConfig, LatexExtractionConfig, StringExtractionConfig, parse, verify

LETTERS = "ABCDEFGHIJ"
CHOICE = re.compile(r"\s*\(?([A-J])\)?[.:]?\s*")
ANSWER_WORDS = 4
"""An answer of at most so many words is read as formula whole, also where no mark says that it is one."""


def serve(precision: int, time_limit: int) -> Callable[[Mapping[str, str]], float | None]:
    """What a worker calls with each `{"expected", "said"}`: 1 or 0; None if what is expected is not mathematics.

    Args:
        precision: digits behind the point that floats are compared by.
        time_limit: seconds of each parsing and of each comparison.
    """
    logging.disable(logging.WARNING)  # it warns of every formula that takes too long, which counts as unequal

    def check(request: Mapping[str, str]) -> float | None:
        expected, answer = request["expected"], request["said"]
        letter = CHOICE.fullmatch(expected)
        if letter:
            strings = StringExtractionConfig(strings=tuple(LETTERS), lowercase=False)
            letters = parse(answer, [strings], parsing_timeout=time_limit)
            return float(letter[1] in letters or bool(CHOICE.fullmatch(answer) and letter[1] in answer))
        kinds = [LatexExtractionConfig(), ExprExtractionConfig()]
        gold = parse(_marked(expected), kinds, parsing_timeout=time_limit)
        if not gold:
            return None
        ways = [answer] if not answer.strip() or len(answer.split()) > ANSWER_WORDS else [_marked(answer), answer]
        for way in ways:
            target = parse(way, kinds, parsing_timeout=time_limit)
            if target and verify(gold, target, float_rounding=precision, timeout_seconds=time_limit):
                return 1.0
        return 0.0

    return check


def _marked(text: str) -> str:
    """Text that is a formula without a mark that says so, with one."""
    text = text.strip()
    bare = text and "$" not in text.replace("\\$", "") and "\\boxed" not in text and "####" not in text
    return f"\\boxed{{{text}}}" if bare else text
