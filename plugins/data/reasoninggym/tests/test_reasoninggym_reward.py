"""The reward `reasoning_gym`, with a stand-in for the package and with the package itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import DataError, PluginError
from finetooth_reasoninggym.reward import Scored, ScoreOptions, build
from finetooth_reasoninggym.scoring import as_json, from_json
from finetooth_reasoninggym.source import ReasoningGym, ReasoningGymOptions

PACKAGE = """
import time
def get_score_answer_fn(name):
    if name != "near":
        raise ValueError(f"Dataset '{name}' not registered")
    def score(said, entry):
        if said == "hang":
            time.sleep(600)
        assert type(entry["metadata"]["at"]) is tuple
        return 1.0 if said == entry["answer"] else 0.01
    return score
"""


@pytest.fixture
def standing_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reasoning_gym.py").write_text(PACKAGE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Any]:
    made: list[Scored] = []

    def call(**options: Any) -> Scored:
        made.append(build(ScoreOptions(**options)))
        return made[-1]

    yield call
    for one in made:
        one.workers.end()


def columns(count: int, task: str | None = "near", answer: str = "7") -> dict[str, Any]:
    return {"task": [task] * count, "completion": [answer] * count, "metadata": [{"at": (1, [2])}] * count}


@pytest.mark.usefixtures("standing_in")
def test_tasks_score(make: Any) -> None:
    assert make()(["?"] * 3, [" 7\n", "8", ""], columns(3)) == [1.0, 0.01, 0.01]
    assert make(tag="answer")(["?"] * 3, ["<answer> 7</answer>", "7", "<answer>8</answer>"], columns(3)) == [1, 0, 0.01]
    assert make()(["?"], ["7"], columns(1, task=None)) == [None]
    assert make(time_limit=0.5)(["?"] * 2, ["hang", "7"], columns(2)) == [None, 1.0]


@pytest.mark.usefixtures("standing_in")
def test_what_cannot_be_scored_is_named(make: Any) -> None:
    with pytest.raises(DataError, match="no column 'task'; there are: answer"):
        make()(["?"], ["7"], {"answer": ["7"]})
    with pytest.raises(PluginError, match="task 'nope' does not score an answer: ValueError: Dataset 'nope' not"):
        make()(["?"], ["7"], columns(1, task="nope"))


def test_tuples_come_back() -> None:
    data = {"a": (1, [2, (3,)]), "b": {"c": None}}
    assert from_json(json.loads(json.dumps(as_json(data)))) == data


@pytest.mark.parametrize("task", ["chain_sum", "arc_agi", "countdown", "sudoku"])
def test_the_real_package_accepts_its_own_answers(make: Any, task: str) -> None:
    pytest.importorskip("reasoning_gym")
    rows = [row.values for row in ReasoningGym(ReasoningGymOptions(dataset=task, count=3)).rows()]
    given = {name: [row[name] for row in rows] for name in ("task", "completion", "metadata")}
    reward, asked = make(), [row["prompt"] for row in rows]
    assert reward(asked, [row["completion"] for row in rows], given) == [1.0] * 3
    assert max(reward(asked, ["what?"] * 3, given)) < 0.5
