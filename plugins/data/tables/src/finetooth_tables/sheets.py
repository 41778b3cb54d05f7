"""`.xlsx` files: the rows of a sheet below its header. Numbers and times stay what they are; formulas are the values
that were computed when the file was saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from finetooth_hooks import DataError, RecipeError, Row
from finetooth_hooks.bases import SourceBase
from finetooth_toolbox.files.missing import MissingFile
from finetooth_toolbox.text.column_names import check_columns


class SheetTable(SourceBase):
    """Rows of one sheet; the id of a row is `FILE:row NUMBER`, as the sheet numbers it.

    Args:
        sheet: its name; None: the only one that is not empty.
    """

    def __init__(self, path: Path, sheet: str | None = None) -> None:
        self._path, self._sheet = path, sheet
        self.name = path.as_posix()

    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self._path,)

    def rows(self) -> Iterator[Row]:
        """Read the sheet row by row.

        Raises:
            DataError: the file is missing or not such a file, the sheet is not there or empty, or the header is broken.
            RecipeError: the library for such files is not installed.
        """
        with self._opened() as book:
            sheet = self._chosen(book)
            names: list[str] | None = None
            count = 0
            for number, cells in enumerate(sheet.iter_rows(values_only=True), start=1):
                values = [_plain(cell) for cell in cells]
                if all(value is None for value in values):
                    continue
                if names is None:
                    names = self._header(values, number)
                    continue
                beyond = [value for value in values[len(names) :] if value is not None]
                if beyond:
                    raise DataError(f"{self.name}:row {number}", "a value beyond the last column of the header",
                                    action="name its column in the header, or remove it")  # fmt: skip
                count += 1
                yield Row(f"{self.name}:row {number}", dict(zip(names, values, strict=False)))
        if not count:
            raise DataError(self.name, f"sheet {sheet.title!r} has no rows below a header", action="name another sheet")

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        if not self._path.is_file():
            raise MissingFile(self._path)
        try:
            import openpyxl  # type: ignore[import-untyped]
        except ImportError as error:
            raise RecipeError(
                "source tables", f"{self.name}: Excel files need the package openpyxl",
                action="pip install openpyxl, or save the sheet as CSV",
            ) from error  # fmt: skip
        try:
            book = openpyxl.load_workbook(self._path, read_only=True, data_only=True)
        except Exception as error:  # the library raises whatever its parsers do
            said = " ".join(str(error).split())[:200]
            raise DataError(self.name, f"it cannot be read as .xlsx: {said}", action="save it anew") from error
        try:
            yield book
        finally:
            book.close()

    def _chosen(self, book: Any) -> Any:
        names = ", ".join(book.sheetnames)
        if self._sheet is not None:
            if self._sheet not in book.sheetnames:
                raise DataError(self.name, f"it has no sheet {self._sheet!r}", action=f"set sheet to one of {names}")
            return book[self._sheet]
        filled = [sheet for sheet in book.worksheets if any(any(row) for row in sheet.iter_rows(values_only=True))]
        if len(filled) > 1:
            raise DataError(
                self.name, f"several sheets hold something: {', '.join(sheet.title for sheet in filled)}",
                action="set sheet: NAME",
            )  # fmt: skip
        if not filled:
            raise DataError(self.name, "every sheet is empty", action="check that it was saved")
        return filled[0]

    def _header(self, values: list[Any], number: int) -> list[str]:
        while values and values[-1] is None:
            values.pop()
        names = ["" if value is None else str(value).strip() for value in values]
        where = f"{self.name}:row {number}"
        if "" in names:
            raise DataError(where, f"column {names.index('') + 1} of the header has no name", action="name it")
        check_columns(names, where)
        return names


def _plain(cell: Any) -> Any:
    """A cell's value; times as texts (ISO 8601), blank text as none."""
    if isinstance(cell, datetime | date | time):
        return cell.isoformat()
    return None if isinstance(cell, str) and not cell.strip() else cell
