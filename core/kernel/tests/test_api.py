"""A recipe from Python: every function takes overrides alike."""

from __future__ import annotations

import inspect

import finetooth
import pytest
from finetooth_hooks import RecipeError

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
    assert dir(finetooth) == sorted(finetooth.__all__)
