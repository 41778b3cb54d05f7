"""The builder of the source `tables`: which reader a file gets, by its name."""

from __future__ import annotations

from pathlib import Path

from finetooth_hooks import Options, RecipeError
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import Source
from finetooth_toolbox.files.json_layout import is_array, is_lines
from finetooth_toolbox.files.packed import unpacked_name
from pydantic import Field

from finetooth_tables.plugin import ARROW, DOCUMENTS, ENDINGS, LINES, PARQUET, SHEETS


class TablesOptions(Options):
    """Options of `tables`."""

    path: str
    """The file, relative to the current directory. Its name gives the format: `.csv`, `.tsv` and `.json` (also with
    `.gz` or `.zst`), `.parquet`, `.arrow`, `.feather`, `.ipc`, `.xlsx`, `.xls`, `.ods`, `.docx`. JSON Lines in a
    `.json` file are recognised."""
    delimiter: str | None = Field(None, min_length=1, max_length=1)
    """Character between the fields of a line. Default: a comma in `.csv`, a tab in `.tsv`, or another delimiter if the
    header has none of these; a note says so."""
    encoding: str | None = None
    """Encoding of a `.csv` or `.tsv` file, such as `cp1252`. Default: UTF-8, or the encoding that fits its first bytes
    beyond ASCII; a note says so."""
    sheet: str | None = None
    """For a file with several sheets: the sheet with the rows, below a header. Tables of a `.docx` file are named `1`,
    `2` and so on."""
    field: str | None = None
    """For a `.json` file that is an object with several lists: the key that holds the rows."""


def build(options: TablesOptions, context: Context) -> Source:
    path = Path(options.path)
    name = unpacked_name(path.name).lower()
    ending = Path(name).suffix
    if ending in LINES and is_array(path):
        ending = ".json"
    if ending not in ENDINGS:
        known = ", ".join(e for e in ENDINGS if e.count(".") == 1)
        raise RecipeError(
            "source tables, path",
            f"{path.as_posix()} does not have the ending of a table ({known})",
            action="rename it, or pick another source",
        )
    delimited = ending in (".csv", ".tsv")
    if options.delimiter is not None and not delimited:
        raise RecipeError("source tables, delimiter", f"a {ending} file has no delimiter", action="remove it")
    if options.field is not None and ending != ".json":
        raise RecipeError("source tables, field", f"a {ending} file has no keys above its rows", action="remove it")
    if options.encoding is not None and not delimited:
        raise RecipeError("source tables, encoding", f"a {ending} file has one encoding", action="remove it")
    if options.sheet is not None and ending not in (*SHEETS, *DOCUMENTS):
        raise RecipeError("source tables, sheet", f"a {ending} file has no sheets", action="remove it")
    if delimited:
        return _delimited(path, ending, options, context)
    if ending in (*SHEETS, *DOCUMENTS):
        from finetooth_tables.sheets import DocumentTable, SheetTable

        return (DocumentTable if ending in DOCUMENTS else SheetTable)(path, options.sheet)
    if ending == ".json" and options.field is None and is_lines(path):
        context.note(f"{path.as_posix()} holds JSON lines, not what its name says, and is read as lines")
        lines: Source = context.build("source", {"name": "jsonl", "path": options.path})
        return lines
    if ending == ".json":
        from finetooth_tables.json_rows import JsonTable

        return JsonTable(path, options.field, context.note)
    from finetooth_tables.columnar import ArrowTable, ParquetTable

    if ending in ARROW:
        return ArrowTable(path, context.note)
    assert ending in PARQUET
    return ParquetTable(path, context.note)


def _delimited(path: Path, ending: str, options: TablesOptions, context: Context) -> Source:
    """A text table, with notes about its detected form."""
    from finetooth_tables.delimited import DelimitedTable, delimiter_of
    from finetooth_tables.encodings import UTF_8, encoding_of, python_encoding

    encoding = encoding_of(path) if options.encoding is None else python_encoding(options.encoding)
    if options.encoding is None and encoding != UTF_8:
        context.note(
            f"{path.as_posix()}: its text is not UTF-8 and is read as {encoding}; set encoding if that is wrong"
        )
    usual = {".csv": ",", ".tsv": "\t"}[ending]
    delimiter = options.delimiter or delimiter_of(path, usual, encoding)
    if options.delimiter is None and delimiter != usual:
        context.note(
            f"{path.as_posix()}: {delimiter!r} separates the fields of its header, so it is taken as the delimiter"
        )
    return DelimitedTable(path, delimiter, context.note, encoding)
