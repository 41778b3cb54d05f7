"""The source `text`: every file is one document."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from finetooth_hooks import DataError, Options, Row
from finetooth_hooks.bases import SourceBase
from finetooth_hooks.context import Context
from finetooth_toolbox.files.missing import MissingFile
from finetooth_toolbox.files.packed import open_bytes, without_mark

from finetooth_text.plugin import DOCUMENTS, READ

ROWS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
"""Endings of files of rows, which nobody expects to be left out of a folder."""


class TextOptions(Options):
    """Options of `text`."""

    path: str
    """A file, or a folder. A folder is read with its subfolders: all `.txt` and `.md` files (also `.gz` and `.zst`) and
    all `.pdf`, `.docx` and `.odt` files, in the order of their names."""


def build(options: TextOptions, context: Context) -> TextFiles:
    return TextFiles(Path(options.path), context.note)


class TextFiles(SourceBase):
    """One row `{"text": ...}` a file; its id is the file. Line ends stay as they are.

    Args:
        note: receives notes about unusual forms of files.
    """

    def __init__(self, path: Path, note: Callable[[str], None] = lambda text: None) -> None:
        self._path, self._note = path, note

    def files(self) -> tuple[Path, ...]:
        """All that are read."""
        return tuple(self._files())

    def rows(self) -> Iterator[Row]:
        """Yields one row for each file, with its whole text.

        Raises:
            DataError: nothing is there, or a file is empty or not UTF-8.
        """
        if self._path.is_dir() and (left := sorted(p.name for p in self._path.rglob("*") if p.suffix.lower() in ROWS)):
            self._note(
                f"{self._path.as_posix()} is read as texts; left out: {', '.join(left[:3])}{', ...' * (len(left) > 3)} "
                "(name such a file itself to train on its rows)"
            )
        for path in self._files():
            yield Row(path.as_posix(), {"text": self._text(path)})

    def _files(self) -> list[Path]:
        name = self._path.as_posix()
        if not self._path.exists():
            raise MissingFile(self._path)
        if not self._path.is_dir():
            return [self._path]
        paths = [path for path in self._path.rglob("*") if path.name.lower().endswith(READ) and path.is_file()]
        if not paths:
            raise DataError(
                name,
                "no .txt, .md, .pdf, .docx or .odt file is in the folder",
                action="name a file, or put texts there",
            )
        return sorted(paths, key=lambda path: path.relative_to(self._path).as_posix())

    def _text(self, path: Path) -> str:
        name = path.as_posix()
        if path.suffix.lower() in DOCUMENTS:
            from finetooth_text.documents import READERS

            return READERS[path.suffix.lower()](path, self._note)
        with open_bytes(path) as file:
            whole = file.read()
        data, marked = without_mark(whole, name)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise DataError(
                f"{name}:{line}",
                f"not UTF-8: byte 0x{data[error.start]:02x} at offset {len(whole) - len(data) + error.start}",
                action="convert the file to UTF-8",
            ) from error
        if marked:
            self._note(f"{name} begins with a byte order mark, which was skipped")
        if not text.strip():
            raise DataError(name, "the file is empty" if not text else "the file holds only blanks", action="remove it")
        return text
