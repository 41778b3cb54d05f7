"""Bounds on text from outside, judged by its characters: tokenizers and templates are asked only after that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

LONGEST_TOKEN = 256
"""Characters of the longest token of any vocabulary, with room: those that are known have tokens of 128 spaces."""

MOST = 2**22
"""Largest number of characters at once, for any context of the model: a million tokens of ordinary text."""

SHOWN = 1000
"""Characters of an error that a client is sent back."""


def too_long(texts: Iterable[str], positions: int | None) -> int:
    """The characters that there may be, where texts have more; 0 where they have not.

    Args:
        positions: tokens that the model reads at once; None or 0: it is not known.
    """
    most = min(MOST, positions * LONGEST_TOKEN) if positions else MOST
    count = 0
    for text in texts:
        count += len(text)
        if count > most:
            return most
    return 0


def texts_in(value: Any) -> Iterator[str]:
    """Every text of a JSON value, names included, and every number as it is written; however deeply it is nested."""
    waiting = [value]
    while waiting:
        current = waiting.pop()
        if isinstance(current, dict):
            waiting += [*current, *current.values()]
        elif isinstance(current, list | tuple):
            waiting += current
        else:
            yield current if isinstance(current, str) else repr(current)


def brief(message: str, most: int = SHOWN) -> str:
    """A line for a client that may repeat what the client sent: of a long one its beginning, and how long it is."""
    if len(message) <= most:
        return message
    return f"{message[:most]}... ({len(message):,} characters)"
