"""Entries that the data section of a recipe picks, built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetooth_hooks.context import Registered
from finetooth_hooks.protocols import Format, Source

from finetooth_core.data.choosing import SourceChoice


@dataclass(frozen=True)
class Picked:
    """An entry of the data section, built.

    Attributes:
        setting: that picked it.
        registered: the entry.
        options: checked, defaults filled in; JSON-able.
    """

    setting: str
    registered: Registered
    options: Mapping[str, Any]


@dataclass(frozen=True)
class PickedSource(Picked):
    """A source of the split.

    Attributes:
        source: gives the rows.
        choice: which of them.
        pin: SHA-256 that its files must have: of all, or of each by name.
        format: the pick of what reads its rows, where its own mapping has one.
    """

    source: Source
    choice: SourceChoice | None = None
    pin: str | Mapping[str, str] | None = None
    format: str | Mapping[str, Any] | None = None


@dataclass(frozen=True)
class PickedFormat(Picked):
    """What reads the rows of one source."""

    format: Format
