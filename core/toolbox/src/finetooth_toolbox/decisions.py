"""What is decided and told while a run is made ready: it all goes into the plan."""

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
        notes: told already.

    Attributes:
        made: by setting, in order; a later one about the same setting replaces it.
        picks: full names of the entries that were picked, by kind.
        options: of the sections that were built, by kind, defaults filled in; JSON-able.
        notes: texts, in order.
        announce: told each further note at once.
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
        """Record which entry of a kind is used, and with which options."""
        self.picks[kind] = full_name
        if options is not None:
            self.options[kind] = options

    def note(self, text: str, *, topic: str = "") -> None:
        """Tell the user something; of several notes on one topic only the first."""
        if (topic or text) not in self._topics:
            self._topics[topic or text] = text
            self.notes.append(text)
            if self.announce is not None:
                self.announce(text)

    @contextmanager
    def unheard(self) -> Iterator[None]:
        """Notes told meanwhile are forgotten, and may be told again."""
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
