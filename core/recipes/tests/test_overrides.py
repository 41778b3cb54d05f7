"""Overrides change one setting, and nothing else."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from finetooth_core.settings.recipe import load
from finetooth_hooks import RecipeError
from finetooth_recipes.overrides import apply_overrides, parse_override
from hypothesis import given
from hypothesis import strategies as st


def applied(recipe: dict[str, Any], *overrides: str) -> dict[str, Any]:
    changed = copy.deepcopy(recipe)
    apply_overrides(changed, overrides)
    return changed


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("a.b=3", 3),
        ("a.b=2e-4", 2e-4),
        ("a.b=true", True),
        ("a.b=yes", "yes"),
        ("a.b=null", None),
        ("a.b=''", ""),
        ("a.b='3'", "3"),
        ('a.b="x # y"', "x # y"),
        ("a.b=x # y", "x # y"),  # in a file, the rest would be a comment
        ("a.b=x: y", "x: y"),
        ("a.b=*.jsonl", "*.jsonl"),
        ("a.b=a=b", "a=b"),
        ("a.b=C:\\data", "C:\\data"),
        ("a.b=[1, x]", [1, "x"]),
        ("a.b={name: y, beta: 0.1}", {"name": "y", "beta": 0.1}),
        (" a.b = 3 ", 3),
    ],
)
def test_values(override: str, value: Any) -> None:
    assert parse_override(override) == (["a", "b"], value)


@pytest.mark.parametrize(
    ("recipe", "override", "result"),
    [
        ({}, "train.seed=1", {"train": {"seed": 1}}),
        ({"train": None}, "train.seed=1", {"train": {"seed": 1}}),
        ({"adapter": "x"}, "adapter.rank=8", {"adapter": {"name": "x", "rank": 8}}),
        ({"adapter": {"name": "x", "rank": 8}}, "adapter=y", {"adapter": "y"}),
        ({"adapter": {"name": "x", "rank": 8}}, "adapter.rank=4", {"adapter": {"name": "x", "rank": 4}}),
        ({}, "optimizer.learning_rate=1e-3", {"optimizer": {"name": "auto", "learning_rate": 1e-3}}),
        ({"model": "m"}, "model.loader=l", {"model": {"name": "m", "loader": "l"}}),
        ({"model": "m"}, "model.loader.revision=v", {"model": {"name": "m", "loader": {"revision": "v"}}}),
        (
            {"method": {"name": "m", "loss": "l"}},
            "method.loss.beta=1",
            {"method": {"name": "m", "loss": {"name": "l", "beta": 1}}},
        ),
        ({"evaluate": {"evaluators": ["a", "b"]}}, "evaluate.evaluators.1=c", {"evaluate": {"evaluators": ["a", "c"]}}),
        (
            {"evaluate": {"evaluators": ["a"]}},
            "evaluate.evaluators.0.n=2",
            {"evaluate": {"evaluators": [{"name": "a", "n": 2}]}},
        ),
        ({"trackers": ["a"]}, "trackers.1=b", {"trackers": ["a", "b"]}),
        ({}, "trackers.0=a", {"trackers": ["a"]}),
        ({"plugins": ["./p.py"]}, "plugins.0.options.a=1", {"plugins": [{"use": "./p.py", "options": {"a": 1}}]}),
        ({"plugins": ["./p.py"]}, "plugins.p.py.options.a=1", {"plugins": [{"use": "./p.py", "options": {"a": 1}}]}),
        (
            {"plugins": ["x", {"use": "/far/p.py", "options": {"a": 1, "b": 2}}]},
            "plugins.p.py.options.a=3",
            {"plugins": ["x", {"use": "/far/p.py", "options": {"a": 3, "b": 2}}]},
        ),
        (
            {"plugins": ["../same.py", "../a/same.py"]},
            "plugins.../a/same.py.options.a=1",
            {"plugins": ["../same.py", {"use": "../a/same.py", "options": {"a": 1}}]},
        ),
        (
            {"plugins": ["acme-gate>=1.2,<2"]},
            "plugins.acme-gate.options.a.py=1",
            {"plugins": [{"use": "acme-gate>=1.2,<2", "options": {"a": {"py": 1}}}]},
        ),
        (
            {"plugins": ["acme.gate"]},
            "plugins.acme.gate.options.a=1",
            {"plugins": [{"use": "acme.gate", "options": {"a": 1}}]},
        ),
    ],
)
def test_paths(recipe: dict[str, Any], override: str, result: dict[str, Any]) -> None:
    assert applied(recipe, override) == result


def test_the_last_one_wins() -> None:
    assert applied({}, "train.seed=1", "train.seed=2") == {"train": {"seed": 2}}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.seed", "'train.seed' is not an override"),
        ("=1", "empty key"),
        ("a..b=1", "empty key"),
        ("a.=1", "empty key"),
        ("train.seed=", "train.seed: the override has no value (write train.seed=null"),
        ("train.seed= ", "has no value"),
        ("trackers.2=x", "trackers.2: the list has only 1 items"),
        ("trackers.-1=x", "'-1' is not an index"),
        ("trackers.x=x", "'x' is not an index"),
        ("plugins.p.py.a=1", "plugins.p: the run names no such plugin (write plugins.NAME.options.OPTION=VALUE; NAME"),
        ("plugins.q.py.options.a=1", "plugins.q.py: the run names no such plugin"),
        ("plugins.q.py.options.a=1", "NAME is p.py or a/same.py or b/same.py"),
        ("plugins.same.py.options.a=1", "plugins.same.py: two plugins have this name (write the index instead"),
        ("plugins.0.options.=1", "empty key"),
        ("trackers.9999999999999999999.a=x", "the list has only 1 items"),
        ("evaluate.every.x=1", "evaluate.every: is 5, so it has no setting below it"),
        ("data.train.seed=1", "data.train: is the reference 'f.jsonl', which takes no options"),
        ("evaluate.evaluators.0=x", "evaluate.evaluators: is 'auto', not a list"),
        ("method=!!python/name:os.system", "the tag '!!python/name:os.system' is not allowed"),
        ("method=[!!python/name:os.system ]", "the tag '!!python/name:os.system' is not allowed"),
        ("method={a: 1, a: 2}", "a: given twice"),
        ("method=[1", "not valid YAML"),
    ],
)
def test_what_is_refused(override: str, said: str) -> None:
    recipe = {"trackers": ["a"], "evaluate": {"every": 5, "evaluators": "auto"}, "data": {"train": "f.jsonl"}}
    recipe["plugins"] = ["./p.py", "./a/same.py", "./b/same.py"]
    with pytest.raises(RecipeError) as raised:
        applied(recipe, override)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "words", [["a.b", "3"], ["a.b", "=", "3"], ["a.b=", "3"], ["a.b", "=3"], ["c=1", "a.b", "3", "d=2"]]
)
def test_a_space_instead_of_an_equals_sign_is_told_with_the_form_that_works(words: list[str]) -> None:
    with pytest.raises(RecipeError, match=r"^'a\.b=?' is not an override \(write a\.b=3, without a space\)$"):
        applied({}, *words)


@pytest.mark.parametrize("words", [["a.b", "be nice"], ["a.b be nice"], ["a.b", "=", "be nice"]])
def test_a_value_with_spaces_is_told_whole(words: list[str]) -> None:
    with pytest.raises(RecipeError, match=r"\(write 'a\.b=be nice', without a space\)$"):
        applied({}, *words)


@pytest.mark.parametrize("words", [["a" * 300], ["be nice " * 500], ["\0"]])
def test_what_no_file_can_be_called_is_no_override_either(words: list[str]) -> None:
    with pytest.raises(RecipeError, match="is not an override"):
        applied({}, *words)


@pytest.mark.parametrize("words", [["a.b", "c=3"], ["a.b=", "c=3"], ["a.b"], ["a.b="]])
def test_a_setting_without_a_value_before_another_is_not_joined_with_it(words: list[str]) -> None:
    with pytest.raises(RecipeError, match=r"write (key\.path=value|a\.b=null)"):
        applied({}, *words)


KEYS = st.text("abcdefgh_", min_size=1, max_size=4)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=8)
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)
PATHS = st.lists(KEYS, min_size=1, max_size=4)


def stored(recipe: Any, path: list[str]) -> Any:
    for key in path:
        recipe = recipe[key]
    return recipe


@given(PATHS, VALUES)
def test_any_json_value_arrives_as_it_is(path: list[str], value: Any) -> None:
    """JSON is the way a program writes an override; its quotes keep text text."""
    override = f"{'.'.join(path)}={json.dumps(value)}"
    arrived = stored(applied({}, override), path)
    assert json.dumps(arrived) == json.dumps(value)


@given(st.dictionaries(KEYS, st.dictionaries(KEYS, LEAVES, max_size=3), max_size=4), KEYS, KEYS, st.integers())
def test_nothing_else_changes(recipe: dict[str, dict[str, Any]], section: str, key: str, value: int) -> None:
    changed = applied(recipe, f"{section}.{key}={value}")
    assert changed[section][key] == value
    changed[section].pop(key)
    before = copy.deepcopy(recipe)
    before.setdefault(section, {}).pop(key, None)
    assert changed == before


@given(st.integers(1, 10**6), st.floats(1e-9, 1e9), st.sampled_from(["drop", "truncate", "raise"]))
def test_a_recipe_and_its_overrides_agree(batch: int, epochs: float, excess: str) -> None:
    section = {"batch_size": batch, "epochs": epochs, "excess_length": excess}
    overrides = [f"train.{key}={value}" for key, value in section.items()]
    written, overridden = load({"model": "m", "train": section}), load({"model": "m"}, overrides)
    assert written.train == overridden.train
    assert written.as_dict() == overridden.as_dict()
