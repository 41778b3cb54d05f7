"""The reward `python_function`: functions as TRL calls them, those that raise or hang, and scores that are none."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetooth_function.reward import FunctionOptions, build
from finetooth_hooks import PluginError, RecipeError
from finetooth_kit import FakeContext, parametrize_with_checks

MAKES = """
def _of(completions, **kwargs):
    return [2.0 for _ in completions]

globals()["ma" + "de"] = _of
"""
FILE = '''
import asyncio, os, signal, time

def length(completions, **kwargs):
    """Of TRL's documentation: the longer, the better."""
    return [float(len(one)) for one in completions]

def chat_length(completions, **kwargs):
    return [float(len(one[0]["content"])) for one in completions]

def right(prompts, completions, answer, **kwargs):
    return [1.0 if a in c else 0.0 for c, a in zip(completions, answer)]

def some(completions, kind):
    return [None if k == "code" else 1 for k in kind]

async def later(completions, completion_ids, **kwargs):
    async def one(ids):
        await asyncio.sleep(0)
        return len(ids)
    return await asyncio.gather(*map(one, completion_ids))

def state(completions, trainer_state, log_extra, log_metric, **kwargs):
    log_extra("first", [one[:1] for one in completions])
    log_metric("count", len(completions))
    return [trainer_state.global_step] * len(completions)

def alarm(completions, **kwargs):
    def late(*_):
        raise TimeoutError("alarm")
    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        time.sleep(30)
    except TimeoutError:
        return [1.0] * len(completions)

def rank(completions, **kwargs):
    if any(c == "bad" for c in completions):
        raise ValueError("cannot rank bad")
    return [sorted(completions).index(c) for c in completions]

def hangs(completions, **kwargs):
    print("not a reply")
    if "hang" in completions:
        time.sleep(600)
    return [1.0] * len(completions)

def dies(completions, **kwargs):
    if "die" in completions:
        os._exit(3)
    return [1.0] * len(completions)

def odd(completions, **kwargs):
    of = {"nan": float("nan"), "inf": float("inf"), "text": "0.5", "list": [1.0]}
    return [of.get(c, 1.0) for c in completions]

def short(completions, **kwargs):
    return [1.0] * (len(completions) - 1)

def single(completions, **kwargs):
    return [1.0]

def number(completions, **kwargs):
    return 1.0

def rows(completions, **kwargs):
    return [len(completions)] * len(completions)
'''


@parametrize_with_checks("finetooth_function.plugin")
def test_conforms(check: Any) -> None:
    check()


@pytest.fixture
def score(tmp_path: Path) -> Callable[..., Any]:
    """Scores completions by a function of `FILE`."""
    (tmp_path / "rewards.py").write_text(FILE, encoding="utf-8")

    def call(function: str, completions: list[str], columns: Any = None, **options: Any) -> Any:
        given = FunctionOptions(function=function, file=str(tmp_path / "rewards.py"), **options)
        call.context = FakeContext(tmp_path)  # type: ignore[attr-defined]
        reward = build(given, call.context)  # type: ignore[attr-defined]
        ids = [f"rows.jsonl:{i}" for i in range(1, len(completions) + 1)]
        try:
            return reward(["?"] * len(completions), completions, {"row_id": ids, **(columns or {})})
        finally:
            reward.workers.end()

    return call


def test_functions_written_for_trl_score(score: Any, tmp_path: Path) -> None:
    assert score("length", ["a", "bbb"]) == [1.0, 3.0]
    assert score("right", ["is 4", "is 5"], {"answer": ["4", "4"]}) == [1.0, 0.0]
    assert score("some", ["x", "y"], {"kind": ["code", "text"]}) == [None, 1.0]
    assert score("later", ["x", "y"], {"completion_ids": [(1, 2), (3,)]}) == [2.0, 1.0]
    assert score("state", ["one", "two"], {"version": [7, 7]}) == [7.0, 7.0]
    logged = json.loads((tmp_path / "rewards" / "state.jsonl").read_text())
    assert logged["step"] == 7 and logged["extra"] == {"first": ["o", "t"]} and logged["metrics"] == {"count": [2.0]}


def test_messages_are_what_rows_with_messages_give(score: Any) -> None:
    talk = [{"role": "user", "content": "?"}]
    assert score("chat_length", ["a", "bbb"], {"conversation": [talk, talk]}) == [1.0, 3.0]
    assert score("chat_length", ["a", "bbb"], conversational=True) == [1.0, 3.0]


def test_trl_itself_gives_the_same(score: Any, tmp_path: Path) -> None:
    """The same file, called by hand as TRL's trainer calls it (`prompts`, `completions`, `completion_ids`, columns)."""
    names: dict[str, Any] = {}
    exec(FILE, names)
    given = {"answer": ["4", "4"], "completion_ids": [[1], [2]], "trainer_state": None}
    theirs = names["right"](prompts=["?", "?"], completions=["is 4", "is 5"], **given)
    assert score("right", ["is 4", "is 5"], {"answer": ["4", "4"], "completion_ids": [[1], [2]]}) == theirs


def test_a_function_that_never_answers_ends_the_run(tmp_path: Path) -> None:
    """Once it was in time, it may be late as often as it likes."""
    (tmp_path / "rewards.py").write_text(FILE, encoding="utf-8")
    options = FunctionOptions(function="hangs", file=str(tmp_path / "rewards.py"), time_limit=0.3, timed_out="zero")
    never, once = build(options, FakeContext(tmp_path)), build(options, FakeContext(tmp_path))
    late, within = (["?"], ["hang"], {}), (["?"], ["fine"], {})
    assert [never(*late), never(*late)] == [[0.0], [0.0]]
    with pytest.raises(PluginError, match=r"returned nothing within 0\.3 seconds in the first 3 batches.*time_limit"):
        never(*late)
    assert once(*within) == [1.0]
    assert [once(*late) for _ in range(4)] == [[0.0]] * 4
    never.workers.end()
    once.workers.end()


def test_alarms_ring_in_a_worker(score: Any) -> None:
    assert score("alarm", ["x"]) == [1.0]


def test_workers_divide_rows_and_keep_groups(score: Any) -> None:
    ids = ["a", "a", "a", "b", "c", "c"]
    assert score("rows", ["x"] * 6, {"row_id": ids}) == [6.0] * 6
    assert score("rows", ["x"] * 6, {"row_id": ids}, workers=3) == [3.0] * 3 + [1.0] + [2.0] * 2
    assert score("rows", ["x"] * 6, {"row_id": ids}, workers=2) == [4.0] * 4 + [2.0] * 2


@pytest.mark.parametrize(
    ("function", "bad", "says"),
    [
        ("rank", "bad", "rewards.py:rank: rows.jsonl:2: the function raised ValueError: cannot rank bad (rewards.py:"),
        ("odd", "nan", "rows.jsonl:2: the function returned nan"),
        ("odd", "inf", "rows.jsonl:2: the function returned inf"),
        ("odd", "text", "rows.jsonl:2: the function returned '0.5', which is not a number"),
        ("odd", "list", "rows.jsonl:2: the function returned [1.0], which is not a number"),
        ("short", "", "rows.jsonl:1: the function returned 2 scores for 3 completions"),
        ("single", "", "rows.jsonl:1: the function returned 1 score for 3 completions"),
        ("number", "", "rows.jsonl:1: the function returned 1.0 for 3 completions"),
    ],
)
def test_a_row_that_fails_is_named(score: Any, function: str, bad: str, says: str) -> None:
    with pytest.raises(PluginError) as caught:
        score(function, ["good", bad, "fine"])
    assert says in str(caught.value) and "\n" not in str(caught.value) and "failed: none" in caught.value.action


def test_a_row_that_fails_is_left_out_or_zero(score: Any) -> None:
    """The other rows of its call are scored; those of other groups as they would be without it."""
    ids = ["a", "a", "b", "b"]
    assert score("rank", ["y", "x", "bad", "z"], {"row_id": ids}, failed="none") == [1.0, 0.0, None, 0.0]
    assert any("b: the function raised ValueError: cannot rank bad" in note for note in score.context.notes)
    assert score("odd", ["nan", "x", "text"], failed="zero") == [0.0, 1.0, 0.0]


@pytest.mark.parametrize(("timed_out", "value"), [("none", None), ("zero", 0.0)])
def test_a_function_that_hangs_is_killed_and_its_row_named(score: Any, timed_out: str, value: float | None) -> None:
    found = score("hangs", ["x", "hang", "y"], time_limit=0.3, timed_out=timed_out)
    assert found == [1.0, value, 1.0]
    assert any("rows.jsonl:2: the function took longer than 0.3 seconds" in note for note in score.context.notes)


def test_a_function_that_ends_its_process_is_named(score: Any) -> None:
    assert score("dies", ["x", "die"]) == [1.0, None]
    with pytest.raises(PluginError, match=r"rows.jsonl:2: the function ended its process with exit code 3"):
        score("dies", ["x", "die"], timed_out="raise")


def test_what_cannot_be_called_is_refused(score: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no function 'lengh'; there are: length, chat_length, right"):
        score("lengh", ["x"])
    (tmp_path / "makes.py").write_text(MAKES, encoding="utf-8")
    made, unmade = (
        build(FunctionOptions(function=name, file=str(tmp_path / "makes.py")), FakeContext(tmp_path))
        for name in ("made", "maed")
    )
    assert made(["?"], ["a"], {}) == [2.0]
    with pytest.raises(PluginError, match=r"no function 'maed'; there are: "):  # only running it tells
        unmade(["?"], ["a"], {})
    for one in (made, unmade):
        one.workers.end()
    (tmp_path / "half.py").write_text("x = 1\ndef f(:\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"python_function: half\.py:2: invalid syntax"):
        build(FunctionOptions(function="f", file=str(tmp_path / "half.py")), FakeContext(tmp_path))
    with pytest.raises(
        PluginError, match=r"takes 'answer', but no column has this name; there are: completion_ids, completions"
    ):
        score("right", ["x"])
    with pytest.raises(RecipeError, match=r"no file nowhere.py"):
        build(FunctionOptions(function="f", file="nowhere.py"), FakeContext(tmp_path))
    with pytest.raises(ValueError, match="give either file or module"):
        FunctionOptions(function="f")


@pytest.mark.parametrize(
    ("function", "needs"),
    [
        ("def f(completions, answer, kind=None, *, row_id, level, strict=True, **columns): ...", "answer row_id level"),
        ("async def f(prompts, completions, completion_ids, trainer_state, log_extra, log_metric): ...", ""),
        ("def f(*, answer): ...", "answer"),
        ("import functools\n@functools.cache\ndef f(answer): ...", ""),
        ("def f(answer): ...\ndef f(completions): ...", ""),
        ("f = lambda answer: ...", ""),
    ],
)
def test_columns_that_a_function_cannot_do_without_are_known_ahead(tmp_path: Path, function: str, needs: str) -> None:
    (tmp_path / "f.py").write_text(function, encoding="utf-8")
    reward = build(FunctionOptions(function="f", file=str(tmp_path / "f.py")), FakeContext(tmp_path))
    assert reward.needed_columns == tuple(needs.split())


def test_a_module_is_imported(tmp_path: Path) -> None:
    reward = build(FunctionOptions(function="fsum", module="math"), FakeContext(tmp_path))
    with pytest.raises(PluginError, match="math:fsum"):
        reward(["?"], ["x"], {})
    reward.workers.end()


def test_a_module_that_a_worker_would_not_find_is_refused_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker starts in this folder, and so finds a file that the command `ft` itself would not."""
    monkeypatch.chdir(tmp_path)
    for module in ("graders", "graders.exact"):
        with pytest.raises(RecipeError, match=r"no module 'graders.*' is installed or in this folder"):
            build(FunctionOptions(function="right", module=module), FakeContext(tmp_path))
    (tmp_path / "graders.py").write_text("def right(completions, **columns):\n    return [1.0 for _ in completions]\n")
    reward = build(FunctionOptions(function="right", module="graders"), FakeContext(tmp_path))
    assert "graders" not in sys.modules
    assert reward(["?"], ["x"], {}) == [1.0]
    reward.workers.end()
