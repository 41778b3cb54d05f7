"""`ft eval` shows what each model measured, side by side, and keeps every answer."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from finetooth_eval.command import command
from finetooth_hooks import Evaluation, Evaluator, UserError
from finetooth_hooks.reports import Sample


def evaluation(value: float) -> Evaluation:
    samples = (Sample("1", "2+2", "4", "4", value), Sample("2", "3+3", "6", "5", 0.0))
    asked = {"template": f"{value} {{question}}", "stop": ["</s>"]}
    return Evaluation("exact_match", 0, {"exact_match": value}, samples=samples, rows=2, settings=asked)


class Catalog:
    """An evaluator that brings its own questions, and others that need rows."""

    def get(self, kind: str, name: str, *, setting: str) -> Any:
        return SimpleNamespace(entry=Evaluator(name=name, build="x:y", summary="x", brings_rows=name == "probes"))


def ft(*arguments: str) -> tuple[Any, list[Any]]:
    asked: list[Any] = []

    def evaluate(reference: str, evaluators: Any, data: Any, overrides: Any, *, answers: bool) -> Any:
        asked.append((reference, evaluators, data, overrides, answers))
        return (evaluation(0.5 if reference == "a" else 0.75),)

    done = CliRunner().invoke(command, arguments, obj=SimpleNamespace(evaluate=evaluate, catalog=Catalog()))
    return done, asked


def test_models_stand_side_by_side() -> None:
    done, asked = ft("a", "b", "--data", "rows.jsonl", "--set", "train.seed=1")
    assert [line.split() for line in done.output.splitlines() if "0.5000" in line] == [
        ["exact_match", "exact_match", "2", "0.5000", "0.7500"]
    ]
    assert done.stderr == "exact_match: template is not the same for all models; --json shows each\n"
    twice, once = ft("a", "a")
    assert twice.exit_code == 0 and twice.stderr == "" and len(once) == 1 and twice.output.count("0.5000") == 1
    assert asked == [(name, [], "rows.jsonl", ("train.seed=1",), False) for name in ("a", "b")]


def test_every_answer_is_kept_with_its_model(tmp_path: Path) -> None:
    file = tmp_path / "of a" / "answers.jsonl"
    done, asked = ft("a", "--answers", str(file), "--evaluator", '{"name": "exact_match", "samples": 1}')
    assert done.exit_code == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["model"], row["evaluator"]) for row in rows] == [("a", "exact_match")] * 2
    assert asked[0][1] == [{"name": "exact_match", "samples": 1}] and asked[0][4]


def test_a_file_of_answers_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").touch()
    done, asked = ft("a", "--answers", str(tmp_path / "answers.jsonl"))
    assert isinstance(done.exception, UserError) and not asked


def test_broken_json_is_named() -> None:
    done, _ = ft("a", "--evaluator", "{name: x}")
    with pytest.raises(UserError, match="is not JSON"):
        raise done.exception


def test_a_suite_brings_its_own_questions() -> None:
    done, asked = ft("a", "--suite", "probes", "--suite", '{"name": "probes", "groups": ["safety"]}')
    assert done.exit_code == 0
    assert asked[0][1:3] == (["probes", {"name": "probes", "groups": ["safety"]}], None)
    done, asked = ft("a", "--suite", "loss")
    assert "--suite loss: it needs rows" in str(done.exception) and not asked
