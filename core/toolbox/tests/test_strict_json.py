"""JSON as the json module reads it, but for what that lets pass."""

from __future__ import annotations

import json
from typing import Any

import pytest
from finetooth_toolbox.text.strict_json import JsonProblem, decode, decode_from, received, type_name
from finetooth_wire import json_parts
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
        ("", "not complete JSON"),
        ('{"a": 1', "not complete JSON"),
        ('{"a": 1  \n', "not complete JSON"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(JsonProblem, match=said):
        decode(text)


@pytest.mark.parametrize(("behind", "unfinished"), [(11, True), (12, True), (13, False)])
def test_an_escape_may_be_cut_within_its_twelve_characters(behind: int, unfinished: bool) -> None:
    """Two halves of a character, as `\\ud83d\\ude00`, are the longest literal that JSON has."""
    with pytest.raises(JsonProblem) as error:
        decode('{"a" ' + "x" * behind)
    assert error.value.unfinished is unfinished and error.value.position == 5


def test_names_of_types() -> None:
    names = [type_name(value) for value in ({}, [], "", True, 1, 0.5, None)]
    assert names == ["an object", "an array", "a string", "true or false", "a number", "a number", "null"]


def in_bytes(text: str) -> Any:
    return json_parts.received(text.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("read", [decode, received, in_bytes])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested too deep"),
        ("[" * 100_000 + "]" * 100_000, "nested too deep"),
        ('{"a": ["\\ud83d"]}', "half a character"),
        ('{"\\uDE00": 1}', "half a character"),
        ('"\ud83d"', "half a character"),
        ("1" * 5000, "digits"),
        ('{"a" 1}', "':' delimiter"),
    ],
)
def test_what_comes_from_outside_has_one_kind_of_error(read: Any, text: str, said: str) -> None:
    with pytest.raises(JsonProblem, match=said):
        read(text)


def test_whole_characters_are_read_however_they_are_written() -> None:
    for text in ('"\\ud83d\\ude00"', '"\U0001f600"', '"\\\\ud83d"'):
        assert decode(text) == received(text) == json_parts.received(text.encode()) == json.loads(text)
