"""A recipe from Python: every function takes overrides alike."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import finetooth
import pytest
from finetooth_hooks import RecipeError
from finetooth_hooks.entries import ENTRY_TYPES

RECIPE = {"model": "nowhere", "data": {"train": "rows.jsonl"}, "method": "none"}


def test_overrides_are_arguments() -> None:
    session = finetooth.session(RECIPE, "train.max_steps=3", "train.batch_size=5")
    assert (session.recipe.train.max_steps, session.recipe.train.batch_size) == (3, 5)


@pytest.mark.parametrize("function", [finetooth.session, finetooth.run, finetooth.engine, finetooth.resume])
def test_every_function_takes_them_alike(function: object) -> None:
    parameters = list(inspect.signature(function).parameters.values())  # type: ignore[arg-type]
    assert parameters[1].name == "overrides"
    assert parameters[1].kind is inspect.Parameter.VAR_POSITIONAL
    assert all(other.kind is inspect.Parameter.KEYWORD_ONLY for other in parameters[2:])


@pytest.mark.parametrize("function", [finetooth.session, finetooth.run, finetooth.engine])
def test_a_list_of_overrides_is_refused_in_words(function: object) -> None:
    with pytest.raises(RecipeError, match=r"this is \['train.max_steps=3'\] \(give each override as an argument"):
        function(RECIPE, ["train.max_steps=3"])  # type: ignore[operator]


def test_what_tools_ask_of_any_module_looks_through_no_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **selection: asked.append(selection) or [])
    assert not hasattr(finetooth, "__test__")
    assert asked == []
    assert not hasattr(finetooth, "nobody_offers_this")
    assert asked == [{"group": "finetooth.names", "name": "nobody_offers_this"}]


def test_a_reader_sees_what_the_package_offers_and_nothing_else() -> None:
    assert dir(finetooth) == sorted([*finetooth.__all__, *ENTRY_TYPES])
    assert all(getattr(finetooth, name) for name in finetooth.__all__)


def test_a_recipe_of_classes_and_functions_is_the_one_that_a_file_says() -> None:
    """What is not set stays unset, so that `auto` and the defaults of entries decide as they do for a file."""
    recipe = finetooth.Recipe(
        model="nowhere",
        data=finetooth.Data(train="rows.jsonl"),
        adapter=finetooth.adapter.lora(rank=4),
        train=finetooth.Train(max_steps=3),
    )
    written = {"model": {"name": "nowhere"}, "data": {"train": "rows.jsonl"}, "train": {"max_steps": 3}}
    assert finetooth.session(recipe).recipe.as_dict() == {**written, "adapter": {"name": "lora", "rank": 4}}
    assert finetooth.session(recipe, "train.max_steps=5").recipe.train.max_steps == 5


def brief(prompts: list[str], completions: list[str], **columns: list[object]) -> list[float]:
    return [-float(len(text)) for text in completions]


@pytest.mark.parametrize("shape", ["list", "iterator", "DataFrame", "Dataset"])
def test_rows_in_memory_and_functions_stand_in_classes_as_in_a_mapping(
    shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    listed = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
    rows: Any = listed
    if shape == "DataFrame":
        rows = pytest.importorskip("pandas").DataFrame(listed)
    elif shape == "Dataset":
        rows = pytest.importorskip("datasets").Dataset.from_list(listed)
    method = {"name": "grpo", "rewards": [brief]}
    mapping = {"model": {"name": "nowhere"}, "data": {"train": listed}, "method": method}
    data = finetooth.Data(train=(row for row in rows) if shape == "iterator" else rows)
    recipe = finetooth.Recipe(model=finetooth.Model(name="nowhere"), data=data, method=method)
    assert finetooth.session(recipe).recipe.as_dict() == finetooth.session(mapping).recipe.as_dict()
    assert len(list((tmp_path / "runs/kept").glob("rows-*.jsonl"))) == 1


MISTAKES = [
    (lambda: finetooth.Train(epoch=2), "train.epoch: unknown setting (did you mean train.epochs?)"),  # type: ignore[call-arg]
    (lambda: finetooth.Train(batch_size=0), "train.batch_size: must be at least 1, got 0 (leave it out for"),
    (lambda: finetooth.Train(learning_rate=1.0), "did you mean optimizer.learning_rate?"),  # type: ignore[call-arg]
    (lambda: finetooth.Data(train=[{"prompt": "a"}], fromat="text"), "did you mean data.format?"),  # type: ignore[call-arg]
    (lambda: finetooth.Data(train=5), "data.train: expected text or a mapping or a list, got the number 5"),
    (lambda: finetooth.Recipe(model="m", train=5), "train: expected a mapping, got the number 5"),  # type: ignore[arg-type]
    (lambda: finetooth.Recipe(model="m", lerning_rate=1), "did you mean optimizer.learning_rate?"),  # type: ignore[call-arg]
    (lambda: finetooth.Recipe(), "model: is required and missing (set model"),  # type: ignore[call-arg]
    (
        lambda: finetooth.session(finetooth.Recipe(model="m", adapter=finetooth.adapter.lora)),
        "adapter: it is given the function lora (if it returns the value, call it: lora()",
    ),
]


@pytest.mark.parametrize(("make", "line"), MISTAKES, ids=[line for _, line in MISTAKES])
def test_a_mistake_in_a_class_is_answered_as_one_in_a_file(make: Callable[[], object], line: str) -> None:
    with pytest.raises(RecipeError) as refused:
        make()
    assert line in str(refused.value) and "\n" not in str(refused.value)


def test_entries_are_functions_with_their_options_as_arguments() -> None:
    assert {"adamw", "lion"} <= set(dir(finetooth.optimizer)) and len(set(dir(finetooth.adapter))) == len(
        dir(finetooth.adapter)
    )
    adamw = finetooth.optimizer.adamw_8bit
    assert inspect.signature(adamw).parameters["learning_rate"].kind is inspect.Parameter.KEYWORD_ONLY
    assert "    learning_rate: " in (adamw.__doc__ or "")
    with pytest.raises(RecipeError, match=r"lerning_rate.*did you mean optimizer\.learning_rate\?"):
        adamw(lerning_rate=1.0)
    with pytest.raises(AttributeError, match=r"no optimizer 'adamww'.*did you mean 'adamw'\?"):
        finetooth.optimizer.adamww  # noqa: B018 - what a notebook does to complete it


def test_functions_of_a_kind_are_made_once_and_can_be_copied() -> None:
    assert finetooth.schedule is finetooth.schedule
    assert dir(copy(finetooth.schedule)) == dir(finetooth.schedule)


def test_a_function_stands_in_an_entrys_options() -> None:
    assert finetooth.method.grpo(rewards=[brief])["rewards"] == [brief]
