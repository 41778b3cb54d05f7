"""When two answers are the same."""

from __future__ import annotations

import re
import unicodedata
from functools import cached_property

from finetooth_hooks import Options
from pydantic import field_validator

KEPT = "-+%"
"""Marks that belong to a number, in addition to currency signs."""


class AnswerOptions(Options):
    """How an answer is read."""

    pattern: str | None = None
    """Regular expression that finds the answer in the expected text and in the model's: its last match, and in it the
    first group if there is one (GSM8K: `#### (\\S+)`). Left out, the whole text is the answer."""
    ignore_case: bool = True
    """Ignore upper and lower case."""
    ignore_punctuation: bool = True
    """Ignore punctuation at the ends of words, except `-`, `+`, `%` and currency signs."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from error
        return pattern

    @cached_property
    def _compiled(self) -> re.Pattern[str] | None:
        return None if self.pattern is None else re.compile(self.pattern)

    def read(self, text: str) -> str | None:
        """The answer in `text`, normalised; None if `pattern` finds none.

        Unicode NFKC, the pattern's last match, case folded, white space to single spaces, punctuation at the ends of
        words removed.
        """
        text = unicodedata.normalize("NFKC", text)
        if self._compiled is not None:
            matches = list(self._compiled.finditer(text))
            if not matches:
                return None
            text = (matches[-1].group(1) if self._compiled.groups else matches[-1].group()) or ""
        if self.ignore_case:
            text = text.casefold()
        words = text.split()
        if self.ignore_punctuation:
            words = [bare for bare in map(_bare, words) if bare] or words  # an answer of marks alone is one too
        return " ".join(words)


def _bare(word: str) -> str:
    """The word without the marks around it."""
    start, end = 0, len(word)
    while start < end and _is_mark(word[start]):
        start += 1
    while end > start and _is_mark(word[end - 1]):
        end -= 1
    return word[start:end]


def _is_mark(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] in "PS" and category != "Sc" and character not in KEPT
