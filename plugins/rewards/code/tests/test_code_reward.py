"""The reward `code_tests` on HumanEval's problems, and what it makes of answers and columns."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from finetooth_code.reward import Code, CodeOptions, build, source_of
from finetooth_hooks import DataError, PlanError
from finetooth_kit import parametrize_with_checks

HUMANEVAL = Path(os.environ.get("FT_SHARED", Path(__file__).parents[5] / "shared")) / "data" / "rl" / "humaneval.jsonl"


@parametrize_with_checks("finetooth_code.plugin")
def test_conforms(check: Any, tmp_path: Path) -> None:
    made(tmp_path)  # skips where no sandbox is possible
    check()


def made(tmp_path: Path, **options: Any) -> Code:
    try:
        return build(CodeOptions(**options))
    except PlanError as error:
        pytest.skip(str(error))


BROKEN = ["    return None\n", "    raise ValueError\n", "    return (\n", "    import os; os._exit(0)\n"]


@pytest.mark.parametrize("every", [23, pytest.param(1, marks=pytest.mark.slow)])
def test_humaneval(tmp_path: Path, every: int) -> None:
    """The canonical solution of every problem scores 1, a broken one 0."""
    if not HUMANEVAL.is_file():
        pytest.skip("no shared data here (FT_SHARED)")
    rows = [json.loads(line) for line in HUMANEVAL.read_text().splitlines()][::every]
    reward = made(tmp_path, continues=True, time_limit=30)
    prompts = [row["prompt"] for row in rows]
    columns = {name: [row[name] for row in rows] for name in ("test", "entry_point")}
    right = [row["canonical_solution"] for row in rows]
    assert [
        row["task_id"] for row, score in zip(rows, reward(prompts, right, columns), strict=True) if score != 1
    ] == []
    wrong = [BROKEN[i % len(BROKEN)] for i in range(len(rows))]
    assert [
        row["task_id"] for row, score in zip(rows, reward(prompts, wrong, columns), strict=True) if score != 0
    ] == []


def test_lists_of_tests_give_shares(tmp_path: Path) -> None:
    tests = ["assert double(2) == 4", "assert double(0) == 0", "assert double('a') == 'aa'", "assert double(1) == 3"]
    answer = "Here:\n```python\ndef double(x):\n    return 2 * x\n```\nThat doubles."
    assert made(tmp_path)([""], [answer], {"test": [tests]}) == [0.0]
    assert made(tmp_path, partial=True)([""], [answer], {"test": [tests]}) == [0.75]


def test_programs(tmp_path: Path) -> None:
    reward = made(tmp_path, cases="io")
    cases = [{"input": "3", "output": "9"}, {"input": "-2", "output": "4"}]
    assert reward([""] * 2, ["print(int(input()) ** 2)", "print(9)"], {"io": [cases, cases]}) == [1.0, 0.0]
    with pytest.raises(DataError, match="cases are a list of mappings with input and output, not 'x'"):
        reward([""], [""], {"io": ["x"]})


@pytest.mark.parametrize(("limited", "value"), [("zero", 0.0), ("none", None)])
def test_limits_score_as_configured(tmp_path: Path, limited: str, value: float | None) -> None:
    reward = made(tmp_path, limited=limited, time_limit=0.6)
    answers = ["def f():\n    while True: pass", "def f(): return 1", "def f(): return 2"]
    tests = ["assert f() == 1", "assert f() == 1", None]
    assert reward([""] * 3, answers, {"test": tests}) == [value, 1.0, None]


def test_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="reward code_tests: no column 'test' with tests; there are: answer"):
        made(tmp_path)([""], ["x"], {"answer": ["x"]})
    with pytest.raises(DataError, match="rows:2: reward code_tests: tests are text or a list of texts, not 3"):
        made(tmp_path)([""] * 2, ["x"] * 2, {"test": ["pass", 3], "row_id": ["rows:1", "rows:2"]})


@pytest.mark.parametrize(
    ("completion", "prompt", "name", "source"),
    [
        ("x = 1", "", "", "x = 1"),
        ("    return 1\n", "def f():\n", "f", "def f():\n    return 1\n"),
        ("def f():\n    return 2\n", "def f():\n", "f", "def f():\n    return 2\n"),
        ("First\n```python\nx = 1\n```\nthen\n```\ny = 2\n```", "", "", "y = 2\n"),
        ("```python\ndef f(): pass\n```\nUse:\n```python\nf()\n```", "", "f", "def f(): pass\n"),
        ("```python\nx = 1", "", "", "```python\nx = 1"),
    ],
)
def test_the_code_of_an_answer(completion: str, prompt: str, name: str, source: str) -> None:
    assert source_of(completion, prompt, name) == source


def test_a_long_line_of_spaces_is_looked_through_once() -> None:
    """A quadratic search would take the time limit of all tests."""
    assert source_of("```" + " " * 1_000_000 + "x").startswith("```")
