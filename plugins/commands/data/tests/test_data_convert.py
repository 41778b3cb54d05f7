"""`ft data convert`: what a shape has a place for comes back as it was; what it has none for is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from finetooth_core.cli import main

pytest.importorskip("finetooth_formats")
pytest.importorskip("finetooth_tables")

ALPACA = [
    {"instruction": "Add.\n\n2, 2", "input": "", "output": "4"},
    {"instruction": "And?", "input": "", "output": "6", "system": "Be brief.", "history": [["3?", "5"]]},
]
PAIRS = [{"prompt": "2+2?", "chosen": "4", "rejected": "5"}]


def convert(*words: object) -> int:
    try:
        return int(main(["data", "convert", *map(str, words)]) or 0)
    except SystemExit as end:
        return int(end.code or 0)


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """alpaca (JSON lines) -> messages (JSON) -> sharegpt -> alpaca: the rows that went in."""
    start = written(tmp_path / "a.jsonl", ALPACA)
    assert convert(start, tmp_path / "m.json", "--to", "messages") == 0
    assert "2 rows read, 2 written" in capsys.readouterr().out
    messages = json.loads((tmp_path / "m.json").read_text())
    assert [one["role"] for one in messages[1]["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert convert(tmp_path / "m.json", tmp_path / "s.jsonl", "--to", "sharegpt") == 0
    assert convert(tmp_path / "s.jsonl", tmp_path / "b.jsonl", "--to", "alpaca") == 0
    assert [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()] == ALPACA


def test_pairs_become_labelled_rows(tmp_path: Path) -> None:
    start = written(tmp_path / "p.jsonl", PAIRS)
    assert convert(start, tmp_path / "k.jsonl", "--to", "kto") == 0
    rows = [json.loads(line) for line in (tmp_path / "k.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == [True, False] and rows[0]["prompt"] == rows[1]["prompt"]


def test_what_a_run_would_leave_out_is_counted_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = {"prompt": "1+1?", "chosen": "2", "rejected": "2"}
    start = written(tmp_path / "p.jsonl", [*PAIRS, same, {**same, "prompt": "3+3?"}, PAIRS[0]])
    source = json.dumps({"name": "jsonl", "path": str(start)})
    assert convert(source, tmp_path / "k.jsonl", "--to", "preference") == 0
    out = capsys.readouterr().out
    assert len((tmp_path / "k.jsonl").read_text().splitlines()) == 2 and "4 rows read, 2 written" in out
    (line,) = [line for line in out.splitlines() if line.startswith("left out")]
    assert line.startswith("left out: 2, ") and line.endswith("p.jsonl:2")


def test_a_table_of_one_question_each(tmp_path: Path) -> None:
    start = written(tmp_path / "d.jsonl", [{"instruction": "Add.", "context": "2, 2", "response": "4"}])
    assert convert(start, tmp_path / "t.csv", "--to", "prompt_completion") == 0
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == [{"prompt": "Add.\n\n2, 2", "completion": "4"}]


@pytest.mark.parametrize(
    ("rows", "name", "shape", "said"),
    [
        (ALPACA, "o.jsonl", "prompt_completion", "a.jsonl:2: 1 of 2 rows hold what shape prompt_completion"),
        (PAIRS, "o.jsonl", "messages", "a preference pair is not a conversation"),
        (ALPACA, "o.parquet", "messages", "rows are written as .jsonl, .json, .csv"),
        (ALPACA, "a.jsonl", "messages", "a.jsonl exists"),
        (ALPACA, "o.csv", "messages", "column messages holds lists"),
        (
            [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "train": False}]}],
            "o.jsonl",
            "sharegpt",
            "fields of messages: train",
        ),
    ],
)
def test_what_would_be_lost_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]], name: str, shape: str, said: str
) -> None:
    start = written(tmp_path / "a.jsonl", rows)
    assert convert(start, tmp_path / name, "--to", shape) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
