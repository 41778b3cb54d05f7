"""The first hour of somebody with a table of her own, typed at a terminal: asked, trained, talked to, exported.

`FT_PEOPLE` names the `ft` of another environment, such as one that has wheels alone.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

Typed = Callable[..., str]
Rows = list[tuple[str, str]]

pytestmark = pytest.mark.slow


def table(rows: Rows, name: str, *columns: str, delimiter: str = ",", encoding: str = "utf-8") -> None:
    with Path(name).open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([columns, *rows])


def test_a_hobbyist_with_columns_of_her_own(typed: Typed, rows: Rows, tiny_smollm2: Path) -> None:
    """She is asked, trains, talks to it, and takes it to Ollama."""
    table(rows, "support.csv", "alpha", "beta")
    shown = typed(
        "init --system 'You are Lumi.'",
        [("What do you have", "support.csv"), ("Which column is the question", "alpha"),
         ("Which column is the answer", "beta"), ("Which model", str(tiny_smollm2)), ("How much memory", ""),
         ("How long", "look"), ("Train now", "n")],
    )  # fmt: skip
    assert "Where is my parcel?" in shown, "rows are shown before they are asked about"
    assert "Next: ft check recipe.yaml, then ft run recipe.yaml" in shown
    shown = typed("run recipe.yaml train.max_steps=3 --output runs/bot")
    assert "done" in shown and "ft chat" in shown
    assert "You are Lumi." in typed("chat runs/bot --prompt 'Where is my parcel?' --max-tokens 4")
    shown = typed("export runs/bot --to ollama --unmeasured")
    assert "ollama create" in shown
    modelfile = next(Path("runs/bot").rglob("Modelfile")).read_text(encoding="utf-8")
    assert 'SYSTEM """You are Lumi."""' in modelfile, "it speaks as what the rows made it"


def test_a_german_table_out_of_excel(typed: Typed, rows: Rows, tiny_smollm2: Path) -> None:
    table(rows, "support.csv", "Frage", "Antwort", delimiter=";", encoding="utf-8-sig")
    shown = typed(f"init --yes --data support.csv --model {tiny_smollm2}")
    assert "';' stands between the fields" in shown and "'Frage' asks and 'Antwort' answers" in shown
    shown = typed("data preview recipe.yaml --rows 1")
    assert "Where is my parcel?" in shown and "[[" in shown, "what trains is marked"
