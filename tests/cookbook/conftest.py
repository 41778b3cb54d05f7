"""One server for all recipes, and the book of how they ended, which the page is drawn from."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
for folder in (HERE, ROOT / "tests/bench"):  # the judges, and the bench's charts
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from judges.page import Book  # noqa: E402
from judges.recipes import SMOLLM, STAND_IN  # noqa: E402
from judges.running import Judge, Server  # noqa: E402
from judges.standins import write_all, write_model  # noqa: E402


@pytest.fixture(scope="session")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    """Starts recipes against `ft serve tinker`. `FT_TINKER_PYTHON` names the interpreter; `make cookbook` makes it."""
    python = os.environ.get("FT_TINKER_PYTHON", "")
    if not python:
        pytest.skip("FT_TINKER_PYTHON names no interpreter with tinker-cookbook: run `make cookbook`")
    data = Path(os.environ.get("FT_SHARED", ROOT.parent / "shared")) / "data"
    if not data.is_dir():
        pytest.skip("no shared data here (FT_SHARED)")
    place = tmp_path_factory.mktemp("cookbook")
    write_model(place / "serving" / STAND_IN)
    write_all(place / "clients", data)
    server = Server(place / "serving", STAND_IN, SMOLLM)
    yield Judge(python, place / "clients", server.url)
    server.stop()


@pytest.fixture(scope="session")
def book(judge: Judge) -> Iterator[Book]:
    """How recipes ended. With `FT_WRITE_DOCS=1` docs/cookbook.md is drawn from it, once all of them ran."""
    found = Book(judge.versions(), HERE / "results.json")
    yield found
    if os.environ.get("FT_WRITE_DOCS") == "1" and found.whole:
        found.write(ROOT / "docs")
