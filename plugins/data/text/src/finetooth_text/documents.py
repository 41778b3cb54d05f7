"""The text of PDF, Word and OpenDocument files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from finetooth_hooks import DataError
from finetooth_rows.foreign import read_with

OTHERWISE = "save its text as .txt"
OFFICE, TEXT, TABLE = (f"{{urn:oasis:names:tc:opendocument:xmlns:{name}:1.0}}" for name in ("office", "text", "table"))
CELL = f"{TABLE}table-cell"
LEFT_OUT = (f"{OFFICE}annotation", f"{TEXT}note")
"""Comments and footnotes, which are inside their paragraphs."""


def pdf_text(path: Path, note: Callable[[str], None]) -> str:
    """The text of a PDF, a paragraph a page.

    Raises:
        DataError: it cannot be read, or holds pictures of text alone.
        RecipeError: the library is not installed.
    """
    with read_with("pypdf", "pypdf", path, OTHERWISE) as pypdf:
        logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # finetooth reports unreadable files itself
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
    if tables:
        name = path.as_posix()
        note(f"{name} holds {tables} tables, read as text here; as rows: {{name: tables, path: {name}}}")
    return _joined(path, parts)


def open_text(path: Path, note: Callable[[str], None]) -> str:
    """The text of an `.odt` file (OpenDocument 1.3, part 3), in the form of `word_text`; without comments, footnotes
    and what tracked changes took out.

    Raises:
        DataError: it cannot be read, or holds no text.
    """
    del note
    with read_with("xml.etree.ElementTree", "", path, OTHERWISE) as xml, ZipFile(path) as archive:
        body = xml.fromstring(archive.read("content.xml")).find(f"{OFFICE}body/{OFFICE}text")
        return _joined(path, [] if body is None else list(_blocks(body)))


def _blocks(part: Any) -> Iterator[str]:
    """Headings, paragraphs and tables inside a part of an `.odt` file, in their order."""
    for block in part:
        text = _inline(block).strip() if block.tag in (f"{TEXT}h", f"{TEXT}p") else ""
        if block.tag == f"{TABLE}table":
            rows = block.iter(f"{TABLE}table-row")
            yield "\n".join("\t".join(" ".join(_blocks(cell)) for cell in row if cell.tag == CELL) for row in rows)
        elif text:
            level = int(block.get(f"{TEXT}outline-level", 1)) if block.tag == f"{TEXT}h" else 0
            yield f"{'#' * level} {text}".lstrip()
        elif block.tag != f"{TEXT}tracked-changes":
            yield from _blocks(block)  # lists, sections and frames


def _inline(part: Any) -> str:
    """The text of a paragraph; spaces, tabs and line breaks are separate elements."""
    blanks = {f"{TEXT}s": " " * int(part.get(f"{TEXT}c", 1)), f"{TEXT}tab": "\t", f"{TEXT}line-break": "\n"}
    if part.tag in blanks:
        return blanks[part.tag]
    if part.tag in LEFT_OUT:
        return ""
    return (part.text or "") + "".join(f"{_inline(child)}{child.tail or ''}" for child in part)


def _joined(path: Path, parts: list[str]) -> str:
    """
    Raises:
        DataError: there are none.
    """
    if not parts:
        raise DataError(path.as_posix(), "the document holds no text", action="remove it")
    return "\n\n".join(parts)


READERS = {".pdf": pdf_text, ".docx": word_text, ".odt": open_text}
"""By the ending of a file."""
