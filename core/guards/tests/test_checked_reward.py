"""A reward that does not keep its contract is named, before anything is trained on what it returned."""

from __future__ import annotations

import asyncio
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetooth_core.cli import main
from finetooth_core.plugins.builders import derived
from finetooth_core.plugins.catalog import Registered
from finetooth_hooks import DataError, PluginError, Reward
from finetooth_toolbox import blame


def asked(reward: Any, count: int = 4) -> Any:
    """What the run gets of a reward for so many answers."""
    registered = Registered(Reward(name="polite", build="acme:build"), "acme-rewards", "1.0")
    return derived(reward, "reward", registered)(["?"] * count, ["!"] * count, {})


def returning(value: Any) -> Any:
    return lambda prompts, completions, columns: value


@pytest.mark.parametrize(
    "scores",
    [
        [1.0, 0.0, None, 0.5],
        (1, 0, None, 0.5),
        [True, np.float32(0), None, Fraction(1, 2)],
        [np.bool_(True), np.int64(0), None, 0.5],
    ],
    ids=str,
)
def test_numbers_and_none_pass_as_floats(scores: Any) -> None:
    found = asked(returning(scores))
    assert found == [1.0, 0.0, None, 0.5]
    assert {type(score) for score in found} == {float, type(None)}


def test_a_coroutine_is_awaited() -> None:
    """Also where a loop runs already, as in a notebook; what it raises and returns is checked as of any other."""

    async def later(prompts: Any, completions: Any, columns: Any) -> list[float]:
        await asyncio.sleep(0)
        return [0.5] * len(completions)

    async def fails(prompts: Any, completions: Any, columns: Any) -> list[float]:
        raise ValueError("late")

    async def in_a_notebook() -> Any:
        return asked(later)

    assert asked(later) == [0.5] * 4 == asyncio.run(in_a_notebook())
    with pytest.raises(PluginError, match="acme-rewards: reward 'polite' raised ValueError: late"):
        asked(fails)


def test_the_row_is_named_where_it_is_known() -> None:
    registered = Registered(Reward(name="polite", build="acme:build"), "acme-rewards", "1.0")
    reward = derived(returning([1.0, float("nan")]), "reward", registered)
    with pytest.raises(PluginError, match=r"returned nan as the score of completion 2 \(rows.jsonl:2\)"):
        reward(["?"] * 2, ["!"] * 2, {"row_id": ["rows.jsonl:1", "rows.jsonl:2"]})


def test_an_array_passes() -> None:
    assert asked(returning(np.array([1.0, 0.0, 0.25, 0.5]))) == [1.0, 0.0, 0.25, 0.5]
    assert asked(returning([]), 0) == []


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([1.0], "returned 1 score for 4 completions"),
        ([1.0] * 5, "returned 5 scores for 4 completions"),
        (1.0, "returned a float, 1.0, for 4 completions"),
        (None, "returned None, for 4 completions"),
        ("good", "returned a str, 'good', for 4 completions"),
        ({0: 1.0}, "returned a dict, {0: 1.0}, for 4 completions"),
        (np.ones((4, 1)), "returned a ndarray, array"),
        ([1.0, "0.5", 1.0, 1.0], "returned a str, '0.5', as the score of completion 2"),
        ([1.0, 1.0, [1.0], 1.0], "returned a list, [1.0], as the score of completion 3"),
        ([1.0, 1.0, 1.0, float("nan")], "returned nan as the score of completion 4 ["),
        ([1.0, 1.0, 10**400, 1.0], "returned inf as the score of completion 3 ["),
        ([1.0, 1e200, 1.0, 1.0], "returned 1e+200 as the score of completion 2, whose square overflows"),
    ],
)
def test_anything_else_names_the_plugin(value: Any, says: str) -> None:
    with pytest.raises(PluginError) as error:
        asked(returning(value))
    assert error.value.problem.startswith(f"acme-rewards: reward 'polite' {says}")
    assert "None" in error.value.action


def test_what_it_raises_is_its_own_or_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(blame._owners, __name__, "acme 1.2")  # what is written here

    def fails(*given: Any) -> Any:
        raise KeyError("answer")

    def leaves(*given: Any) -> Any:
        raise SystemExit(0)

    def refuses(*given: Any) -> Any:
        raise DataError("rows.jsonl:3", "has no answer")

    with pytest.raises(PluginError, match="acme-rewards: reward 'polite' raised SystemExit: 0"):
        asked(leaves)

    with pytest.raises(PluginError, match="acme-rewards: reward 'polite' raised KeyError: 'answer'") as error:
        asked(fails)
    assert f"[{__file__}:{fails.__code__.co_firstlineno + 1}]" in error.value.problem
    with pytest.raises(DataError, match=r"rows\.jsonl:3: has no answer"):
        asked(refuses)
    with pytest.raises(PluginError, match="acme-rewards: reward 'polite' is a float, which cannot be called"):
        asked(1.0)


def test_a_run_stops_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """By the way that every reward of a run is built."""
    import shutil

    pytest.importorskip("finetooth_exactmatch")
    here = Path(__file__).parents[2] / "kernel/tests/cli"
    shutil.copy(here / "toy_plugin.py", tmp_path)
    (tmp_path / "lazy.py").write_text(
        "from finetooth_hooks import Options, Reward, hookimpl\n\n"
        "@hookimpl\ndef ft_rewards():\n    yield Reward(name='lazy', build=f'{__name__}:build')\n\n"
        "def build(options: Options, context):\n    return lambda prompts, completions, columns: [1.0]\n"
    )
    (tmp_path / "train.toy").write_text("".join(f"What is {i}?\tIt is {i}.\n" for i in range(4)))
    (tmp_path / "recipe.yaml").write_text(
        "{model: {name: toy, loader: toy}, data: {train: train.toy, eval: train.toy}, method: toy_sft, adapter: toy, "
        "optimizer: toy, schedule: toy, backend: toy, hardware: toy, trackers: [], output: run, "
        "evaluate: {evaluators: [{name: exact_match, reward: lazy}]}, plugins: [./toy_plugin.py, ./lazy.py]}"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["run", "recipe.yaml"]) == 2
    assert "lazy.py: reward 'lazy' returned 1 score for 4 completions [" in (said := capsys.readouterr().err)
    assert "lazy.py:" in said and "] (it must return a list" in said
