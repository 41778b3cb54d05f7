"""Rows that teach nothing, from the file to the method: left out and counted, or refused by name; never trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import pytest
from finetooth_hooks import DataError

Make = Callable[..., dict[str, Any]]

PAIR = {"prompt": "What is ice?", "chosen": "Cold.", "rejected": "Hot, as far as I know."}
STEPS = {"prompt": "Sum", "completions": ["a = 1.", "b = 2."], "labels": [True, False]}
LABELS = [
    {"prompt": "What is ice?", "completion": "Cold.", "label": True},
    {"prompt": "What is ice?", "completion": "Hot.", "label": False},
]
BAD = {
    "same": ("dpo", "bad_rows", [PAIR, {**PAIR, "rejected": "Cold."}], "chosen and rejected are the same"),
    "empty": ("dpo", "bad_rows", [PAIR, {**PAIR, "chosen": ""}], "chosen is empty"),
    "no prompt": ("dpo", "bad_rows", [PAIR, {**PAIR, "prompt": ""}], "the prompt is empty"),
    "a tie": (
        "dpo", "bad_rows", [PAIR, {**PAIR, "score_chosen": 2, "score_rejected": 2}],
        "chosen and rejected are rated the same",
    ),
    "empty answer": ("kto", "bad_rows", [*LABELS, {**LABELS[0], "completion": " "}], "empty"),
    "same for rm": ("rm", "unusable", [PAIR, {**PAIR, "rejected": "Cold."}], "chosen and rejected are the same"),
    "labels": ("prm", "unusable", [STEPS, {**STEPS, "labels": [True]}], "another number of labels than of steps"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are named by the path that the recipe has."""
    monkeypatch.chdir(tmp_path)


def prepared(recipe: Make, folder: Path, method: Any, rows: list[dict[str, Any]]) -> Any:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {"train": file.name, "renderer": "chatml", "cache": "off"}
    return finetooth.session(recipe(data=data, method=method)).job.prepared.report


@pytest.mark.parametrize("bad", BAD)
def test_the_method_decides_what_becomes_of_them(recipe: Make, tmp_path: Path, bad: str) -> None:
    method, setting, rows, reason = BAD[bad]
    report = prepared(recipe, tmp_path, {"name": method, setting: "drop"}, rows)
    (found,) = report.dropped
    assert reason in found and report.dropped == {found: 1}
    assert report.dropped_ids[found] == (f"rows.jsonl:{len(rows)}",)
    with pytest.raises(DataError, match=rf"rows.jsonl:{len(rows)}: .*{reason}.* set method.{setting}.* drop"):
        prepared(recipe, tmp_path, {"name": method, setting: "raise"}, rows)


def test_several_are_counted_by_reason(recipe: Make, tmp_path: Path) -> None:
    rows = [PAIR, {**PAIR, "rejected": "Cold."}, {**PAIR, "chosen": ""}, {**PAIR, "rejected": "Cold. "}]
    with pytest.raises(DataError, match=r"1 chosen is empty \(rows.jsonl:3\)"):
        prepared(recipe, tmp_path, {"name": "dpo", "bad_rows": "raise"}, rows)


def test_a_loss_without_beta_is_known_by_its_full_name_too(recipe: Make, tmp_path: Path) -> None:
    losses = [{"name": "sigmoid"}, {"name": "finetooth-preflosses:sft", "weight": 0.1}]
    assert prepared(recipe, tmp_path, {"name": "dpo", "beta": 0.2, "losses": losses}, [PAIR]).used == 1


def test_what_is_too_long_is_not_the_methods_to_refuse(recipe: Make, tmp_path: Path) -> None:
    rows = [PAIR, {**PAIR, "chosen": "word " * 2000}]
    report = prepared(recipe, tmp_path, {"name": "dpo", "bad_rows": "raise"}, rows)
    assert list(report.dropped) == ["longer than train.max_length"]
