"""The table in docs/families.md: complete, and what it says of a tiny model of each family is what the model does."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from page import PAGE, RESULTS, page
from tiny_families import ABSENT, COLUMNS, TYPES, Tiny

SAID: dict[str, dict[str, list[Any]]] = json.loads(RESULTS.read_text(encoding="utf-8"))
QUICK = ("qwen3_moe",)
"""The others are slow."""


def test_the_page_is_that_of_the_results() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(SAID), "run: python tests/families/page.py"


def test_every_type_of_a_family_has_a_row_and_every_no_a_reason() -> None:
    plugins = Path(__file__).parents[2] / "plugins/families"
    named = {
        kind
        for folder in plugins.iterdir() if (folder / "src").is_dir()
        for entry in import_module(f"finetooth_{folder.name}.plugin").ft_families()
        for kind in entry.model_types
    }  # fmt: skip
    assert named and named <= TYPES.keys() | ABSENT.keys()
    assert list(SAID) == list(TYPES) and all(list(cells) == list(COLUMNS) for cells in SAID.values())
    assert all(works or why for cells in SAID.values() for works, why in cells.values())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tiny]:
    return {}


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow) for kind in TYPES]
)
def test_a_cell_says_what_the_model_does(
    models: dict[str, Tiny], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch,
    kind: str, column: str,
) -> None:  # fmt: skip
    if kind not in models:
        models.clear()
        models[kind] = Tiny(kind, tmp_path_factory.mktemp(kind))
    monkeypatch.setenv("FT_CACHE", str(models[kind].folder / "cache"))
    assert list(models[kind].cell(column)) == SAID[kind][column]
