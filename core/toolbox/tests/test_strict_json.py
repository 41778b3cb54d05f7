"""JSON as the json module reads it, but for what that lets pass."""

from __future__ import annotations

import json

import pytest
from finetooth_toolbox.text.strict_json import JsonProblem, decode, decode_from, type_name
from hypothesis import given, settings
from hypothesis import strategies as st

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(VALUES, st.text("ab 1,]", max_size=4))
def test_values_are_those_of_the_json_module(value: object, after: str) -> None:
    text = json.dumps(value)
    assert decode(text) == value
    found, end = decode_from(f"  {text}|{after}", 2)
    assert found == value and end == 2 + len(text)


@settings(deadline=None)
@given(VALUES, st.data())
def test_a_cut_text_says_that_more_may_mend_it(value: object, data: st.DataObject) -> None:
    text = json.dumps({"key": value})
    cut = text[: data.draw(st.integers(1, len(text) - 1))]
    with pytest.raises(JsonProblem) as error:
        decode(cut)
    assert error.value.unfinished and error.value.position is not None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' occurs twice in one object"),
        ('[{"b": {"a": NaN}}]', "'a' is NaN, not a finite number"),
        ("[-Infinity]", "-Infinity is not a finite number"),
        ('{"a": 1e999}', "'a' is 1e999, not a finite number"),
        ('{"a" 1}' + " " * 20 + "x", "not JSON: expecting ':' delimiter at character 6"),
        ('{"a": "', "not complete JSON"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(JsonProblem, match=said):
        decode(text)


def test_names_of_types() -> None:
    names = [type_name(value) for value in ({}, [], "", True, 1, 0.5, None)]
    assert names == ["an object", "an array", "a string", "true or false", "a number", "a number", "null"]
