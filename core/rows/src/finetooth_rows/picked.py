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
        setting: the setting that picked it.
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
        source: yields the rows.
        choice: the choice among its rows.
        pin: required SHA-256 of its files: of all together, or of each by name.
        format: the pick of its rows' format, if the source's mapping has one.
        format_said: the reason for the format, for the plan.
    """

    source: Source
    choice: SourceChoice | None = None
    pin: str | Mapping[str, str] | None = None
    format: str | Mapping[str, Any] | None = None
    format_said: str = "the recipe says so"

    def files(self) -> tuple[Path, ...] | None:
        """The files that determine the rows; None if files do not.

        Raises:
            DataError: a file is missing.
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
    """The format that reads the rows of one source."""

    format: Format
