"""The four stages of the guide, on a few rows of the data it names and a tiny random model: each begins from the one
before, and says the numbers that the guide's table shows."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

DATA = Path(os.environ.get("FT_SHARED", Path(__file__).parents[2].parent / "shared")) / "data"
FILES = {
    "instructions.jsonl": "sft/alpaca_1k.jsonl",
    "pairs.jsonl": "preference/polite_pref.jsonl",
    "labels.jsonl": "multi/oasst_rank_labels.jsonl",
}
STAGES = ("book", "answers", "polite", "ranked")
SAID = {"book": "loss", "answers": "loss", "polite": "rewards/accuracies", "ranked": "rewards/auc"}


def write_data(folder: Path) -> None:
    """A few rows of each file, some held out."""
    text = (DATA / "raw/war_and_peace.txt").read_text(encoding="utf-8")
    (folder / "book.txt").write_text(text[10_000:14_000], encoding="utf-8")
    (folder / "book-eval.txt").write_text(text[-1_000:], encoding="utf-8")
    for name, source in FILES.items():
        with (DATA / source).open(encoding="utf-8") as file:
            lines = list(islice(file, 40))
        (folder / name).write_text("".join(lines[:32]), encoding="utf-8")
        (folder / name.replace(".", "-eval.")).write_text("".join(lines[32:]), encoding="utf-8")


def metrics_of(run: Path) -> dict[str, Any]:
    """Of the last evaluation."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return dict([line for line in lines if line["event"] == "evaluation"][-1]["metrics"])


def test_each_stage_begins_from_the_one_before(root: Path, blocks: Callable[[Path], Any], shell: Any) -> None:
    if not DATA.is_dir():
        pytest.skip("no shared data here (FT_SHARED)")
    write_data(shell.folder)
    recipes = {block.marker: block.text for block in blocks(root / "docs/guides/stages.md")}
    for stage in STAGES:
        (shell.folder / f"{stage}.yaml").write_text(recipes[f"file: {stage}.yaml"], encoding="utf-8")
        code, printed = shell.run(f"ft run {stage}.yaml")
        assert code == 0, printed
        assert SAID[stage] in metrics_of(shell.folder / "runs" / stage)
    manifest = json.loads((shell.folder / "runs/ranked/artifact/manifest.json").read_text(encoding="utf-8"))
    for parent in ("runs/polite", "runs/answers", "runs/book"):
        manifest = manifest["parent"]
        assert manifest["run"] == parent and manifest["data"]
