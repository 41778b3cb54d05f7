"""Text tables that are not UTF-8, and Excel files: what a program for tables writes by itself."""

# ruff: noqa: RUF001

from __future__ import annotations

import datetime
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_hooks import DataError, RecipeError
from finetooth_tables.encodings import encoding_of
from finetooth_tables.plugin import claims
from finetooth_tables.source import TablesOptions, build

GERMAN = "Frage;Antwort\nKann ich die Adresse ändern?;Ja, für 5 € – bis sie „raus“ ist.\n"
FRENCH = "question,réponse\nOù est mon colis ?,Il est arrivé à l'hôtel.\n"
RUSSIAN = "вопрос;ответ\nГде моя посылка?;Она приедет завтра утром, не беспокойтесь.\n" * 3
POLISH = "pytanie;odpowiedź\nGdzie jest moja paczka? Źle się czuję.;Paczka już idzie, proszę się nie martwić, łódź.\n"


def read(path: Path, **options: Any) -> tuple[list[dict[str, Any]], list[str]]:
    notes: list[str] = []
    source = build(TablesOptions(path=str(path), **options), SimpleNamespace(note=notes.append))  # type: ignore[arg-type]
    return [dict(row.values) for row in source.rows()], notes


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (GERMAN, "cp1252"),
        (FRENCH, "cp1252"),
        (FRENCH.replace("ù", "u"), "latin-1"),
        (RUSSIAN, "cp1251"),
        (POLISH, "cp1250"),
        (GERMAN, "utf-16"),
    ],
)
def test_what_is_not_utf_8_is_found_and_said(tmp_path: Path, text: str, encoding: str) -> None:
    """The same rows, whatever they are written in."""
    path, plain = tmp_path / "x.csv", tmp_path / "plain.csv"
    path.write_bytes(text.encode(encoding))
    plain.write_bytes(text.encode())
    rows, notes = read(path)
    assert rows == read(plain)[0]
    assert any("is not UTF-8 and is read as" in note for note in notes)
    assert not any("not UTF-8" in note for note in read(plain)[1])


def test_the_first_accent_may_come_late(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"a,b\n" + b"plain,plain\n" * 50_000 + "für,mich\n".encode("cp1252"))
    assert read(path)[0][-1] == {"a": "für", "b": "mich"}


def test_one_broken_byte_in_utf_8_is_a_fault_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes("a,b\nfür,x\n".encode() + b"\xe4,y\n")
    assert encoding_of(path) == "utf-8"
    with pytest.raises(DataError, match="not UTF-8: byte 0xe4"):
        read(path)


def test_an_encoding_may_be_said(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes("a\nПривет\n".encode("koi8-r"))
    assert read(path, encoding="koi8-r") == ([{"a": "Привет"}], [])
    with pytest.raises(RecipeError, match="'koi9' is not the name of an encoding"):
        read(path, encoding="koi9")
    with pytest.raises(DataError, match="not UTF-8"):
        read(path, encoding="utf-8")


def workbook(path: Path, **sheets: list[list[Any]]) -> Path:
    pytest.importorskip("python_calamine")
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def test_rows_of_a_sheet(tmp_path: Path) -> None:
    day = datetime.datetime(2024, 1, 2)
    path = workbook(tmp_path / "x.xlsx", Empty=[], Rows=[[], ["frage", "n", "tag"], ["für", 3, day], [], ["b", None]])
    rows, notes = read(path)
    assert rows == [{"frage": "für", "n": 3, "tag": "2024-01-02"}, {"frage": "b", "n": None, "tag": None}]
    assert not notes


@pytest.mark.parametrize(
    ("sheets", "options", "said"),
    [
        ({"A": [["x"], ["1"]], "B": [["y"], ["2"]]}, {}, "several sheets hold something: A, B"),
        ({"A": [["x"], ["1"]]}, {"sheet": "C"}, "it has no sheet 'C'"),
        ({"A": [["x", "x"], ["1", "2"]]}, {}, "two columns are named 'x'"),
        ({"A": [["x", None, "y"], ["1", "2", "3"]]}, {}, "column 2 of the header has no name"),
        ({"A": [["x"], ["1", "2"]]}, {}, "row 2: a value beyond the last column"),
        ({"A": [["x"]]}, {}, "no rows below a header"),
        ({"A": []}, {}, "every sheet is empty"),
    ],
)
def test_a_sheet_that_is_no_table_is_named(
    tmp_path: Path, sheets: dict[str, list[list[Any]]], options: dict[str, str], said: str
) -> None:
    path = workbook(tmp_path / "x.xlsx", **sheets)
    with pytest.raises(DataError, match=said):
        read(path, **options)


def test_what_is_no_excel_file_is_said(tmp_path: Path) -> None:
    pytest.importorskip("python_calamine")
    (tmp_path / "x.xlsx").write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"cannot be read as \.xlsx"):
        read(tmp_path / "x.xlsx")


def test_rows_of_an_opendocument_sheet(tmp_path: Path) -> None:
    """Written as the standard says (OASIS ODF 1.3, part 3), not by the library that reads it."""
    pytest.importorskip("python_calamine")
    cells = [["q", "n"], ["für?", "3"]]
    rows = "".join(
        "<table:table-row>"
        + "".join(
            f'<table:table-cell office:value-type="float" office:value="{one}"/>' if one.isdecimal() else
            f'<table:table-cell office:value-type="string"><text:p>{one}</text:p></table:table-cell>' for one in row
        ) + "</table:table-row>"
        for row in cells
    )  # fmt: skip
    name = "urn:oasis:names:tc:opendocument:xmlns:{}:1.0"
    content = (
        f'<office:document-content xmlns:office="{name.format("office")}" xmlns:table="{name.format("table")}" '
        f'xmlns:text="{name.format("text")}" office:version="1.3"><office:body><office:spreadsheet>'
        f'<table:table table:name="Rows">{rows}</table:table></office:spreadsheet></office:body>'
        "</office:document-content>"
    )
    with zipfile.ZipFile(tmp_path / "x.ods", "w") as file:
        file.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
        file.writestr("META-INF/manifest.xml", "<manifest/>")
        file.writestr("content.xml", content)
    assert read(tmp_path / "x.ods") == ([{"q": "für?", "n": 3}], [])


def test_tables_of_a_word_document(tmp_path: Path) -> None:
    docx = pytest.importorskip("docx")
    document = docx.Document()
    for texts in (("question", "answer", "Where?", "Here."), ("x", "y", "1", "2")):
        table = document.add_table(2, 2)
        for cell, text in zip((cell for row in table.rows for cell in row.cells), texts, strict=True):
            cell.text = text
    document.save(str(tmp_path / "x.docx"))
    assert read(tmp_path / "x.docx", sheet="1")[0] == [{"question": "Where?", "answer": "Here."}]
    with pytest.raises(DataError, match=r"several tables hold something: 1, 2 \(set sheet: NAME\)"):
        read(tmp_path / "x.docx")
    assert claims("x.docx") is None and claims("x.ods") is not None


@pytest.mark.parametrize("ending", [".xlsx", ".ods", ".docx"])
def test_a_file_that_unfolds_beyond_memory_is_refused(tmp_path: Path, ending: str) -> None:
    """A part of zeros, 1.5 GB in 1.5 MB: refused by what the archive says of it, before a library unpacks it."""
    pytest.importorskip("docx" if ending == ".docx" else "python_calamine")
    path = tmp_path / f"x{ending}"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, archive.open("a", "w") as part:
        for _ in range(96):
            part.write(bytes(1 << 24))
    with pytest.raises(
        DataError, match=r"it unfolds from [\d,]+ bytes to 1,610,612,736, and 1,073,741,824 may be held"
    ):
        read(path)
