"""Reads lines of a prompt, a tab and a completion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetooth_hooks import Context, DataError, Options, Row


class SourceOptions(Options):
    """Options of `acme_source`."""

    path: str
    """The file; a source that claims references gets the reference here."""


def build(options: SourceOptions, context: Context) -> Lines:
    """Called once for each reference in the recipe."""
    return Lines(Path(options.path))


@dataclass(frozen=True)
class Lines:
    """Rows with the columns `prompt` and `completion`; the id of a row is file and line."""

    path: Path

    def rows(self) -> Iterator[Row]:
        """
        Raises:
            DataError: the file cannot be read, is empty, or a line has no tab; names file and line.
        """
        name = self.path.as_posix()
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(name, f"it cannot be read: {error}", action="check data.train and data.eval") from error
        if not lines:
            raise DataError(name, "the file is empty", action="check data.train and data.eval")
        for number, line in enumerate(lines, start=1):
            prompt, tab, completion = line.partition("\t")
            if not tab:
                raise DataError(f"{name}:{number}", "no tab on the line", action="write PROMPT<tab>COMPLETION")
            yield Row(f"{name}:{number}", {"prompt": prompt, "completion": completion})
