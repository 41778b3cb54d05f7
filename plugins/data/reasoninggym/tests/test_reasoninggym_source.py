"""Splits that never share a question, over a stand-in that seeds row i with seed + i as reasoning-gym does."""

from __future__ import annotations

import dataclasses
import random
import sys
import types
from typing import Any

import pytest
from finetooth_hooks import DataError, PluginError, RecipeError, Row
from finetooth_kit import entries_of, parametrize_with_checks
from finetooth_reasoninggym.source import ReasoningGym, ReasoningGymOptions, base_seed, split_of
from hypothesis import given
from hypothesis import strategies as st


@parametrize_with_checks("finetooth_reasoninggym.plugin")
def test_conforms(check: Any) -> None:
    check()


class Sums:
    """The package's shape: row i from its own generator, seeded with seed + i."""

    def __init__(self, seed: int, size: int, largest: int = 1000) -> None:
        if largest < 1:
            raise AssertionError("largest must be positive")
        self.seed, self.size, self.largest = seed, size, largest

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = random.Random(self.seed + index)
        a, b = rng.randint(0, self.largest), rng.randint(0, self.largest)
        return {"question": f"{a} + {b} =", "answer": str(a + b), "metadata": {"a": a, "b": b}}


def create_dataset(name: str, **arguments: Any) -> Sums:
    if name != "sums":
        raise ValueError(f"Dataset '{name}' not registered")
    return Sums(**arguments)


@pytest.fixture
def gym(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("reasoning_gym")
    module.create_dataset = create_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "reasoning_gym", module)


def rows(**options: Any) -> list[Row]:
    return list(ReasoningGym(ReasoningGymOptions(dataset="sums", **options)).rows())


def questions(**options: Any) -> set[str]:
    return {row.values["prompt"] for row in rows(**options)}


@pytest.mark.usefixtures("gym")
def test_rows() -> None:
    read = rows(count=200)
    assert len(read) == len({row.id for row in read}) == len({row.values["prompt"] for row in read}) == 200
    assert read == rows(count=200)
    for row in read:
        a, b = row.values["metadata"]["a"], row.values["metadata"]["b"]
        assert (row.values["prompt"], row.values["completion"]) == (f"{a} + {b} =", str(a + b))


@pytest.mark.usefixtures("gym")
@pytest.mark.parametrize("largest", [20, 1000])
def test_train_and_eval_never_share_a_question(largest: int) -> None:
    """Even where few questions exist, and whatever the two seeds are."""
    options = {"parameters": {"largest": largest}}
    train = questions(count=250, **options)
    for seed in (0, 1, 2, 77):
        assert not train & questions(count=60, seed=seed, split="eval", **options)


@pytest.mark.usefixtures("gym")
def test_neighbouring_seeds_share_next_to_nothing() -> None:
    """With seed + i and plain seeds 0 and 1 all rows but one would be the same."""
    assert len(questions(count=200) & questions(count=200, seed=1)) < 5


@given(st.integers(-(2**40), 2**40), st.integers(-(2**40), 2**40))
def test_base_seeds_are_apart(first: int, second: int) -> None:
    assert 0 <= base_seed(first) < 2**31
    if first != second:
        assert base_seed(first) != base_seed(second)


@given(st.text())
def test_a_question_has_one_split(question: str) -> None:
    assert split_of(question) in ("train", "eval")


def test_about_a_fifth_is_eval() -> None:
    share = sum(split_of(f"{i} + 1 =") == "eval" for i in range(5000)) / 5000
    assert share == pytest.approx(0.2, abs=0.03)


@pytest.mark.usefixtures("gym")
def test_an_exhausted_task_says_how_many_there_are() -> None:
    wanted = sum(split_of(f"{a} + {b} =") == "eval" for a in range(3) for b in range(3))
    with pytest.raises(DataError, match=rf"only {wanted} different questions of split eval"):
        rows(count=20, split="eval", parameters={"largest": 2})


@pytest.mark.usefixtures("gym")
def test_wrong_settings_are_named() -> None:
    with pytest.raises(RecipeError, match="makes no 'nope': Dataset 'nope' not registered"):
        list(ReasoningGym(ReasoningGymOptions(dataset="nope")).rows())
    with pytest.raises(RecipeError, match="unexpected keyword argument 'bogus'"):
        rows(parameters={"bogus": 1})
    with pytest.raises(RecipeError, match="largest must be positive"):
        rows(parameters={"largest": 0})


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(PluginError, match="pip install reasoning-gym") as error:
        rows()
    assert error.value.exit_code == 2


def test_the_real_package() -> None:
    pytest.importorskip("reasoning_gym")
    entry = dataclasses.replace(
        entries_of("finetooth_reasoninggym.plugin")[0], example={"dataset": "chain_sum", "count": 5}
    )
    train = ReasoningGym(ReasoningGymOptions(**{**entry.example, "count": 300})).rows()
    held_out = ReasoningGym(ReasoningGymOptions(**{**entry.example, "count": 100, "split": "eval"})).rows()
    assert not {row.values["prompt"] for row in train} & {row.values["prompt"] for row in held_out}
