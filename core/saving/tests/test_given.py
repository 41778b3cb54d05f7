"""What a recipe is given from Python is kept as files that say the same."""

from __future__ import annotations

import datetime
import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import arrays as xp
from finetooth_hooks.errors import RecipeError
from finetooth_saving.given import keep_values

ROWS = [{"prompt": f"{a}+1?", "completion": str(a + 1)} for a in range(5)]
DIGITS = re.compile(r"\d+")
BONUS = 0.5


def digits(text: str) -> list[str]:
    return DIGITS.findall(text)


def rewarded(completions: list[str], **columns: Any) -> list[float]:
    """Half a point for a digit."""
    return [BONUS * bool(digits(text)) for text in completions]


def halved(outputs: Any, data: Any) -> Any:
    """Half of the cross entropy."""
    return -outputs["logprobs"] * xp.where(data.mask, BONUS, BONUS) * data.scalars["margin"]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rows_of(reference: str) -> list[Any]:
    return [json.loads(line) for line in Path(reference).read_text(encoding="utf-8").splitlines()]


def train(rows: Any) -> Any:
    return keep_values({"model": "m", "data": {"train": rows}})["data"]["train"]


def loaded(file: str) -> Any:
    """The kept file as a module of its own."""
    spec = importlib.util.spec_from_file_location(f"kept_{Path(file).stem.replace('-', '_')}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def frame() -> Any:
    return pytest.importorskip("pandas").DataFrame(ROWS)


def dataset() -> Any:
    return pytest.importorskip("datasets").Dataset.from_list(ROWS)


def table() -> Any:
    return pytest.importorskip("pyarrow").Table.from_pylist(ROWS)


@pytest.mark.parametrize(
    "make", [lambda: ROWS, lambda: iter(ROWS), lambda: (dict(r) for r in ROWS), frame, dataset, table]
)
def test_rows_in_memory_are_one_file_whatever_holds_them(make: Callable[[], Any]) -> None:
    path = train(make())
    assert rows_of(path) == ROWS
    assert path == train(ROWS), "the same rows are the same file"
    assert [file.name for file in Path("runs/kept").iterdir()] == [Path(path).name]


def test_numbers_times_and_empty_cells_are_json() -> None:
    pandas = pytest.importorskip("pandas")
    rows = pandas.DataFrame({"a": [1, 2], "b": [0.5, float("nan")], "c": [pandas.Timestamp(2024, 1, 2), pandas.NaT]})
    assert rows_of(train(rows)) == [
        {"a": 1, "b": 0.5, "c": "2024-01-02T00:00:00"},
        {"a": 2, "b": None, "c": None},
    ]
    row = {"v": np.arange(2), "n": np.float32(0.5), "d": datetime.date(2024, 1, 2), "t": ({"k": np.int64(3)},)}
    assert rows_of(train([row])) == [{"v": [0, 1], "n": 0.5, "d": "2024-01-02", "t": [{"k": 3}]}]


def test_structs_of_a_data_set_lose_the_nulls_that_arrow_puts_there() -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"call": {"city": "Rome"}}, {"call": {"a": 1}}]
    assert rows_of(train(datasets.Dataset.from_list(rows))) == rows


def test_a_list_of_references_stays_one_and_tables_in_it_are_kept() -> None:
    references = ["a.jsonl", {"name": "jsonl", "path": "b.jsonl"}]
    assert train(references) == references
    first, second = train(["a.jsonl", frame()])
    assert first == "a.jsonl" and rows_of(second) == ROWS
    assert rows_of(train(iter([{"name": "Anna"}]))) == [{"name": "Anna"}], "an iterator is always rows"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (iter([]), "it has no rows"),
        (3.5j, "it is given a complex"),
        (iter([1]), "row 1 is a int, not a mapping"),
        ([{"a": object()}], "row 1, column a is a object"),
        ([{"a": float("inf")}], "row 1, column a is inf"),
    ],
)
def test_what_holds_no_rows_is_named(rows: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(said)) as error:
        train(rows)
    assert str(error.value).startswith("data.train: ")
    assert not list(Path("runs/kept").glob("*")), "nothing half is left"


def test_a_recipe_of_texts_is_what_it_was() -> None:
    recipe = {"model": "m", "data": {"train": "a.jsonl"}, "method": {"name": "grpo", "rewards": [{"name": "r"}]}}
    assert keep_values(recipe) is recipe


def test_a_reward_is_kept_with_all_that_it_uses() -> None:
    recipe = keep_values(
        {"model": "m", "output": "out/x", "method": {"name": "grpo", "rewards": [rewarded, "exact_match"]}}
    )
    own, other = recipe["method"]["rewards"]
    assert other == "exact_match"
    assert (own["name"], own["function"], own["label"]) == ("python_function", "rewarded", "rewarded")
    assert Path(own["file"]).parent == Path("out/kept")
    assert loaded(own["file"]).rewarded(["7", "no"]) == rewarded(["7", "no"]) == [0.5, 0.0]
    again = keep_values({"model": "m", "output": "out/y", "method": {"name": "grpo", "rewards": rewarded}})
    assert again["method"]["rewards"] == [own], "the same source is the same file"


def test_an_evaluator_has_the_function_score_answers() -> None:
    recipe = keep_values({"model": "m", "evaluate": {"evaluators": ["loss", rewarded]}})
    loss, own = recipe["evaluate"]["evaluators"]
    assert loss == "loss" and own["name"] == "exact_match" and own["reward"]["function"] == "rewarded"


def test_a_loss_declares_what_it_reads() -> None:
    recipe = keep_values({"model": "m", "method": {"name": "sft", "loss": halved}})
    (file,) = recipe["plugins"]
    (entry,) = loaded(file).ft_losses()
    assert entry.name == recipe["method"]["loss"] and entry.summary == "Half of the cross entropy"
    assert (entry.needs, entry.fields, entry.scalars) == ({"logprobs"}, frozenset(), {"margin"})


def outer() -> Iterator[Any]:
    hidden = 3

    def closure(completions: list[str], **columns: Any) -> list[float]:
        return [hidden for _ in completions]

    yield closure


UNKEPT = object()


def uses_an_object(completions: list[str], **columns: Any) -> list[float]:
    return [float(UNKEPT is None) for _ in completions]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda completions, **columns: [0.0], r"the lambda in line \d+ cannot be kept with the run"),
        (next(outer()), "closure reads hidden of the function around it"),
        (print, "print cannot be kept with the run: it is a builtin_function"),
        (uses_an_object, "it uses UNKEPT, a object that has no source"),
    ],
)
def test_what_cannot_be_kept_is_named_in_one_line(function: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said) as error:
        keep_values({"model": "m", "method": {"name": "grpo", "rewards": [function]}})
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("method.rewards: ")


def test_a_function_elsewhere_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"rewards: it is given the function .*functions may stand .*method.rewards"):
        keep_values({"rewards": [test_a_function_elsewhere_is_refused]})
    with pytest.raises(RecipeError, match=r"adapter: it is given .*functions may stand at data.format"):
        keep_values({"model": "m", "adapter": rewarded})
