"""PDF, Word and OpenDocument files: their text, and what is no text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from finetooth_hooks import DataError, RecipeError
from finetooth_rows import foreign
from finetooth_text.plugin import claims
from finetooth_text.source import TextFiles

CONTENT = """<?xml version="1.0" encoding="UTF-8"?>
<office:document-content xmlns:office="urn:oasis:names:tc:opendocument:xmlns:office:1.0"
 xmlns:text="urn:oasis:names:tc:opendocument:xmlns:text:1.0"
 xmlns:table="urn:oasis:names:tc:opendocument:xmlns:table:1.0">
<office:body><office:text>
<text:tracked-changes><text:changed-region><text:deletion><text:p>Taken out.</text:p></text:deletion>
</text:changed-region></text:tracked-changes>
<text:h text:outline-level="2">Opening hours</text:h>
<text:p>We open<text:s text:c="2"/>at <text:span>nine</text:span><office:annotation><text:p>Sure?</text:p>
</office:annotation>.<text:note><text:note-body><text:p>A footnote.</text:p></text:note-body></text:note></text:p>
<text:p> </text:p>
<table:table><table:table-row><table:table-cell><text:p>day</text:p></table:table-cell>
<table:table-cell><text:p>closes</text:p></table:table-cell></table:table-row><table:table-row><table:table-cell>
<text:p>Monday</text:p></table:table-cell><table:table-cell><text:p>six</text:p></table:table-cell></table:table-row>
</table:table>
<text:section><text:list><text:list-item><text:p>That<text:tab/>is<text:line-break/>all.</text:p></text:list-item>
</text:list></text:section>
</office:text></office:body></office:document-content>"""


def pdf(path: Path, *pages: str) -> Path:
    """A PDF as its standard writes it (ISO 32000-1, 7.5), a line of text a page."""
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, text in enumerate(pages):
        drawn = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET" if text else ""
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * number} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        objects.append(f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream")
    body, places = "%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        places.append(len(body))
        body += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    size = len(objects) + 1
    body += f"xref\n0 {size}\n0000000000 65535 f \n{table}"
    body += f"trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{body.index('xref')}\n%%EOF\n"
    path.write_bytes(body.encode("latin-1"))
    return path


def word(path: Path) -> Path:
    docx = pytest.importorskip("docx")
    document = docx.Document()
    document.add_heading("Opening hours", 2)
    document.add_paragraph("We open at nine.")
    document.add_paragraph(" ")
    table = document.add_table(2, 2)
    for row, texts in zip(table.rows, (("day", "closes"), ("Monday", "six")), strict=True):
        for cell, text in zip(row.cells, texts, strict=True):
            cell.text = text
    document.add_paragraph("That is all.")
    document.save(str(path))
    return path


def read(path: Path) -> tuple[list[Any], list[str]]:
    notes: list[str] = []
    return [row.values["text"] for row in TextFiles(path, notes.append).rows()], notes


def test_the_pages_of_a_pdf(tmp_path: Path) -> None:
    pytest.importorskip("pypdf")
    path = pdf(tmp_path / "a.pdf", "We open at nine.", "We close at six.")
    assert read(path) == (["We open at nine.\n\nWe close at six."], [])
    assert claims("a.PDF") is not None and claims("https://example.org/a.pdf") is None
    texts, notes = read(pdf(tmp_path / "b.pdf", "One.", "", "Three."))
    assert texts == ["One.\n\nThree."] and "1 of 3 pages hold no text; the first is page 2" in notes[0]


def test_a_word_document_in_the_order_of_its_parts(tmp_path: Path) -> None:
    texts, notes = read(word(tmp_path / "a.docx"))
    assert texts == ["## Opening hours\n\nWe open at nine.\n\nday\tcloses\nMonday\tsix\n\nThat is all."]
    assert "holds 1 tables" in notes[0] and "{name: tables, path:" in notes[0]


def test_documents_are_in_folders_too(tmp_path: Path) -> None:
    pytest.importorskip("pypdf")
    pdf(tmp_path / "b.pdf", "two")
    (tmp_path / "a.txt").write_text("one")
    assert read(tmp_path)[0] == ["one", "two"]


def open_document(path: Path, content: str = CONTENT) -> Path:
    """An `.odt` file with this content, as OpenDocument packs it."""
    with ZipFile(path, "w") as archive:
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.text")
        archive.writestr("content.xml", content)
    return path


def test_an_open_document_in_the_order_of_its_parts(tmp_path: Path) -> None:
    texts, notes = read(open_document(tmp_path / "a.odt"))
    assert (
        texts == ["## Opening hours\n\nWe open  at nine.\n\nday\tcloses\nMonday\tsix\n\nThat\tis\nall."] and notes == []
    )
    assert claims("a.ODT") is not None


def test_an_open_document_without_text_is_named(tmp_path: Path) -> None:
    empty = re.sub(r"(?s)<office:text>.*</office:text>", "<office:text/>", CONTENT)
    with pytest.raises(DataError, match="the document holds no text"):
        read(open_document(tmp_path / "a.odt", empty))


@pytest.mark.parametrize("name", ["x.pdf", "x.docx", "x.odt"])
def test_what_is_none_is_named(tmp_path: Path, name: str) -> None:
    pytest.importorskip("pypdf")
    pytest.importorskip("docx")
    (tmp_path / name).write_bytes(b"neither")
    with pytest.raises(DataError, match=rf"it cannot be read as \.{name[2:]}.*save it again"):
        read(tmp_path / name)
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / f"none{name}")


def test_a_scan_is_said(tmp_path: Path) -> None:
    pytest.importorskip("pypdf")
    with pytest.raises(DataError, match="no page holds text"):
        read(pdf(tmp_path / "x.pdf", "", ""))


def test_a_library_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(foreign, "import_module", missing)
    with pytest.raises(RecipeError, match=r"files need the package pypdf \(.*pip install pypdf, or save its text"):
        read(pdf(tmp_path / "x.pdf", "text"))
