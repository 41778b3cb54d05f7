"""Entries that the data section of a recipe picks, built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetooth_hooks.context import Registered
from finetooth_hooks.protocols import Format, Source
from finetooth_toolbox.files.missing import MissingFile

from finetooth_rows.choices.choice import SourceChoice


@dataclass(frozen=True)
class PickedEntry:
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
class PickedSource(PickedEntry):
    """A source of the split.

    Attributes:
        source: gives the rows.
        choice: which of them.
        pin: SHA-256 that its files must have: of all, or of each by name.
        format: the pick of what reads its rows, where its own mapping has one.
        format_said: why it is that one, for the plan.
    """

    source: Source
    choice: SourceChoice | None = None
    pin: str | Mapping[str, str] | None = None
    format: str | Mapping[str, Any] | None = None
    format_said: str = "the recipe says so"

    def files(self) -> tuple[Path, ...] | None:
        """What the rows are made of; None if no files decide them.

        Raises:
            DataError: they are not there.
        """
        try:
            files = self.source.files()
            missing = next((path for path in files or () if not path.exists()), None)
            if missing is not None:
                raise MissingFile(missing)
        except MissingFile as error:
            raise error.of(self.setting) from error
        return files


@dataclass(frozen=True)
class PickedFormat(PickedEntry):
    """What reads the rows of one source."""

    format: Format
