"""The text of PDF and Word documents."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from finetooth_hooks import DataError
from finetooth_rows.foreign import read_with

OTHERWISE = "save its text as .txt"


def pdf_text(path: Path, note: Callable[[str], None]) -> str:
    """The text of a PDF, a paragraph a page.

    Raises:
        DataError: it cannot be read, or holds pictures of text alone.
        RecipeError: the library is not installed.
    """
    with read_with("pypdf", "pypdf", path, OTHERWISE) as pypdf:
        logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # what cannot be read is said by us
        pages = [page.extract_text().strip() for page in pypdf.PdfReader(path).pages]
    empty = [number for number, page in enumerate(pages, start=1) if not page]
    if len(empty) == len(pages):
        raise DataError(path.as_posix(), "no page holds text: it is scanned", action="recognise its text (OCR) first")
    if empty:
        note(f"{path.as_posix()}: {len(empty)} of {len(pages)} pages hold no text; the first is page {empty[0]}")
    return "\n\n".join(filter(None, pages))


def word_text(path: Path, note: Callable[[str], None]) -> str:
    """The text of a `.docx` file: paragraphs, headings with `#` as in Markdown, rows of tables with tabs between cells.

    Raises:
        DataError: it cannot be read, or holds no text.
        RecipeError: the library is not installed.
    """
    parts: list[str] = []
    tables = 0
    with read_with("docx", "python-docx", path, OTHERWISE) as docx:
        for part in docx.Document(str(path)).iter_inner_content():
            if hasattr(part, "rows"):
                tables += 1
                parts += ["\n".join("\t".join(cell.text for cell in row.cells) for row in part.rows)]
            elif part.text.strip():
                style = part.style.name if part.style is not None else ""
                level = style.removeprefix("Heading ") if style.startswith("Heading ") else ""
                parts.append(f"{'#' * int(level)} {part.text}" if level.isdecimal() else part.text)
    if not parts:
        raise DataError(path.as_posix(), "the document holds no text", action="remove it")
    if tables:
        name = path.as_posix()
        note(f"{name} holds {tables} tables, read as text here; as rows: {{name: tables, path: {name}}}")
    return "\n\n".join(parts)


READERS = {".pdf": pdf_text, ".docx": word_text}
"""By the ending of a file."""
