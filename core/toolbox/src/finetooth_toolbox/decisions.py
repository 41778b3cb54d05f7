"""Decisions and notes during the preparation of a run, for the plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from finetooth_hooks.plan import Decision

Note = tuple[str, str]
"""Topic and text of a note."""


class Decisions:
    """A log of decisions, picks and notes.

    Args:
        notes: earlier notes.

    Attributes:
        made: decisions by setting, in order; a later one about the same setting replaces it.
        picks: full names of the picked entries, by kind.
        options: options of the built sections, by kind, with defaults; JSON-able.
        notes: texts, in order.
        announce: receives each new note at once.
    """

    def __init__(self, notes: Iterable[str] = ()) -> None:
        self.made: dict[str, Decision] = {}
        self.picks: dict[str, str] = {}
        self.options: dict[str, Mapping[str, Any]] = {}
        self.notes: list[str] = list(notes)
        self.announce: Callable[[str], None] | None = None
        self._topics: dict[str, str] = {}

    def decide(self, setting: str, value: Any, reason: str) -> None:
        """Record a decision; a later one about the same setting replaces it."""
        self.made[setting] = Decision(setting, value, reason)

    def pick(self, kind: str, full_name: str, options: Mapping[str, Any] | None = None) -> None:
        """Record the used entry of a kind, with its options."""
        self.picks[kind] = full_name
        if options is not None:
            self.options[kind] = options

    def note(self, text: str, *, topic: str = "") -> None:
        """Add a note for the user; of several notes on one topic only the first counts."""
        if (topic or text) not in self._topics:
            self._topics[topic or text] = text
            self.notes.append(text)
            if self.announce is not None:
                self.announce(text)

    @contextmanager
    def unheard(self) -> Iterator[None]:
        """Forget notes from inside the context, so that they may be added again later."""
        topics, notes, announce = dict(self._topics), list(self.notes), self.announce
        self.announce = None
        try:
            yield
        finally:
            self._topics, self.notes, self.announce = topics, notes, announce

    @property
    def told(self) -> list[Note]:
        """Topics and texts of all notes, in order."""
        return list(self._topics.items())
