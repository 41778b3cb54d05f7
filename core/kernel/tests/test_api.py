"""A recipe from Python: every function takes overrides alike."""

from __future__ import annotations

import inspect
from copy import copy

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
        model="nowhere",  # type: ignore[arg-type] - as in a file
        data=finetooth.Data(train="rows.jsonl"),
        adapter=finetooth.adapter.lora(rank=4),
        train=finetooth.Train(max_steps=3),
    )
    written = {"model": {"name": "nowhere"}, "data": {"train": "rows.jsonl"}, "train": {"max_steps": 3}}
    assert finetooth.session(recipe).recipe.as_dict() == {**written, "adapter": {"name": "lora", "rank": 4}}
    assert finetooth.session(recipe, "train.max_steps=5").recipe.train.max_steps == 5


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
    def brief(prompts: list[str], completions: list[str], **columns: list[object]) -> list[float]:
        return [-float(len(text)) for text in completions]

    assert finetooth.method.grpo(rewards=[brief])["rewards"] == [brief]
