"""What a run leaves for people: its page, its table, its outcome as rows; of a run from its recipe to its end."""

from __future__ import annotations

import json
import re
from pathlib import Path

import finetooth
import pytest
from finetooth_core.cli import main

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_a_run_leaves_its_page_and_says_what_became_of_its_rows(recipe, losses, capsys):
    held_out = {"name": "tasks", "task": "family", "split": "eval", "count": 4, "seed": 5}
    made = recipe()
    outcome = finetooth.run({**made, "data": {**made["data"], "eval": held_out}, "evaluate": {"evaluators": ["loss"]}})
    folder = Path(made["output"])
    page = (folder / "report.html").read_text(encoding="utf-8")
    for said in ("Curves", "Answers", "Data", "Plan", "Environment", "Recipe", "finetooth-lora:lora", "torch"):
        assert said in page or said == "Answers"  # nothing was sampled
    (train, held) = outcome.data
    assert (train.split, train.rows, held.split, held.rows) == ("train", 24, "eval", 4)
    told = json.loads((folder / "result.json").read_text())
    assert told["rows"][0]["tokens"] == train.tokens and f"{train.tokens:,}" in page
    assert told["environment"] == dict(outcome.environment)

    rows = outcome.rows()
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert [row["loss"] for row in rows[1:]] == losses(folder)
    assert rows[0]["eval/loss"] == outcome.evaluations[0].metrics["loss"] and "eval/loss" in rows[3]
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(rows).set_index("step")
    assert frame.loc[3, "loss"] == losses(folder)[-1] and frame["eval/loss"].count() == 2

    assert main(["runs", "show", str(folder)]) == 0
    assert re.search(r"^last loss +\d", capsys.readouterr().out, re.MULTILINE)
    (folder / "report.html").unlink()
    assert main(["report", str(folder)]) == 0
    again = (folder / "report.html").read_text(encoding="utf-8")
    assert again.count("<svg") == page.count("<svg") and f"{train.tokens:,}" in again
