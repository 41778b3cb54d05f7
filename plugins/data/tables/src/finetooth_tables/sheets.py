"""Sheets of `.xlsx` and `.ods` files, and tables of `.docx` files: the rows below a header. Numbers and times stay what
they are; formulas are the values that were computed when the file was saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

from finetooth_hooks import DataError, Row
from finetooth_hooks.bases import SourceBase
from finetooth_rows.foreign import read_with
from finetooth_toolbox.text.column_names import check_columns

Cells = Sequence[Sequence[Any]]


class SheetTable(SourceBase):
    """Rows of one sheet; the id of a row is `FILE:row NUMBER`, as the sheet numbers it.

    Args:
        sheet: its name; None: the only one that is not empty.
    """

    kind = "sheet"

    def __init__(self, path: Path, sheet: str | None = None) -> None:
        self._path, self._sheet = path, sheet
        self.name = path.as_posix()

    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self._path,)

    def rows(self) -> Iterator[Row]:
        """Read the sheet row by row.

        Raises:
            DataError: the file is missing or of another kind, the sheet is missing or empty, or the header is broken.
            RecipeError: the library for such files is not installed.
        """
        title, sheet = self._chosen(self._sheets())
        names: list[str] | None = None
        count = 0
        for number, cells in enumerate(sheet, start=1):
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
            raise DataError(
                self.name, f"{self.kind} {title!r} has no rows below a header", action=f"name another {self.kind}"
            )

    def _sheets(self) -> Mapping[str, Cells]:
        """All sheets by their names."""
        with read_with("python_calamine", "python-calamine", self._path, "save the sheet as CSV") as calamine:
            book = calamine.CalamineWorkbook.from_path(str(self._path))
            return {name: book.get_sheet_by_name(name).to_python(skip_empty_area=False) for name in book.sheet_names}

    def _chosen(self, sheets: Mapping[str, Cells]) -> tuple[str, Cells]:
        names = ", ".join(sheets)
        if self._sheet is not None:
            if self._sheet not in sheets:
                raise DataError(
                    self.name, f"it has no {self.kind} {self._sheet!r}", action=f"set sheet to one of {names}"
                )
            return self._sheet, sheets[self._sheet]
        filled = [
            name for name, cells in sheets.items() if any(_plain(cell) is not None for row in cells for cell in row)
        ]
        if len(filled) > 1:
            raise DataError(
                self.name, f"several {self.kind}s hold something: {', '.join(filled)}", action="set sheet: NAME"
            )
        if not filled:
            raise DataError(self.name, f"every {self.kind} is empty", action="check that it was saved")
        return filled[0], sheets[filled[0]]

    def _header(self, values: list[Any], number: int) -> list[str]:
        while values and values[-1] is None:
            values.pop()
        names = ["" if value is None else str(value).strip() for value in values]
        where = f"{self.name}:row {number}"
        if "" in names:
            raise DataError(where, f"column {names.index('') + 1} of the header has no name", action="name it")
        check_columns(names, where)
        return names


class DocumentTable(SheetTable):
    """Rows of a table in a `.docx` file; tables have numbers for names, from 1."""

    kind = "table"

    def _sheets(self) -> Mapping[str, Cells]:
        with read_with("docx", "python-docx", self._path, "save the table as CSV") as docx:
            tables = docx.Document(str(self._path)).tables
            return {
                str(number): [[cell.text for cell in row.cells] for row in table.rows]
                for number, table in enumerate(tables, start=1)
            }


def _plain(cell: Any) -> Any:
    """A cell's value; times as texts (ISO 8601), whole numbers without a fraction, blank text as none."""
    if isinstance(cell, datetime | date | time):
        return cell.isoformat()
    if isinstance(cell, timedelta):
        return str(cell)
    if isinstance(cell, float) and cell.is_integer():  # sheets know no other numbers
        return int(cell)
    return None if isinstance(cell, str) and not cell.strip() else cell
