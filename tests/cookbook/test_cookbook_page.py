"""docs/cookbook.md is what the last run of the recipes says, and nothing written by hand."""

from __future__ import annotations

import json
from pathlib import Path

from judges.page import GAIN, Book, curve, ends, render, shell
from judges.recipes import ALL, ARITHMETIC

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_is_drawn_from_the_results_of_all_recipes() -> None:
    found = json.loads((Path(__file__).parent / "results.json").read_text(encoding="utf-8"))
    assert (DOCS / "cookbook.md").read_text(encoding="utf-8") == render(found)
    assert (DOCS / "cookbook/arithmetic.svg").read_text(encoding="utf-8") == curve(found["arithmetic"])
    told = {one["name"]: one for one in found["recipes"]}
    assert {name: one["command"] for name, one in told.items()} == {one.name: one.command for one in ALL}
    assert all(told[one.name]["steps"] == one.steps for one in ALL)
    first, last = ends(found["arithmetic"]["reward"])
    assert last - first >= GAIN and len(found["arithmetic"]["reward"]) >= 15


def test_a_page_takes_all_recipes_with_the_same_versions(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    book = Book({"tinker": "1"}, file)
    for recipe in ALL:
        assert not book.whole
        lines = [{recipe.metric: 0.5, "env/all/correct": 0.5, "env/all/format": 1.0} for _ in range(recipe.steps)]
        book.note(recipe, lines)
    assert book.whole
    book.write(tmp_path)
    assert Book({"tinker": "1"}, file).whole
    assert not Book({"tinker": "2"}, file).whole


def test_a_command_on_lines_is_the_same_command() -> None:
    lines = shell(ARITHMETIC.command)
    assert len(lines) > 1 and all(len(line) < 120 for line in lines)
    assert "\n".join(lines).replace("\\\n", "").split() == ARITHMETIC.command.split()
