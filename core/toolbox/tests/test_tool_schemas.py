"""Schemas of tools before any renderer writes them."""

from __future__ import annotations

from typing import Any

import pytest
from finetooth_hooks import DataError
from finetooth_toolbox.messages.tool_schemas import check_tools, is_bare, wrapped


def tool(**parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "clock", "description": "", "parameters": parameters}}


@pytest.mark.parametrize(
    "good",
    [
        tool(),
        tool(properties={"zone": {"type": ["string", "null"], "enum": ["UTC", None]}}, required=["zone"]),
        tool(type="object", properties={"days": {"anyOf": [{"type": "integer"}, {"type": "null"}]}, "any": True}),
        tool(type="object", properties={"of": {"type": "array", "items": {"type": "string", "required": True}}}),
        {"type": "function", "function": {"name": "clock"}},
        {"name": "clock", "parameters": None},
    ],
)
def test_schemas_of_json_pass(good: dict[str, Any]) -> None:
    check_tools([good])


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("clock", r"tools\[0\] is text, not an object"),
        ({"type": "function", "function": "x"}, r"tools\[0\]\.function is text, not an object"),
        ({"type": "function", "function": {}}, r"tools\[0\]\.function\.name is missing"),
        ({"parameters": {}}, r"tools\[0\]\.name is missing"),
        ({"type": "function", "function": {"name": "a", "parameters": []}}, r"parameters is a list, not a schema"),
        ({"name": "a", "return": "string"}, r"tools\[0\]\.return is text, not a schema"),
        (tool(properties=["zone"]), r"parameters\.properties is a list, not an object"),
        (tool(properties={"zone": "string"}), r"properties\.zone is text, not a schema"),
        (tool(properties={"zone": {"type": 3}}), r"properties\.zone\.type is a number"),
        (tool(properties={"zone": {"type": [None]}}), r"properties\.zone\.type is a list"),
        (tool(properties={"zone": {}}, required="zone"), r"parameters\.required is text"),
        (tool(properties={"of": {"type": "array", "items": {"oneOf": "x"}}}), r"of\.items\.oneOf is text"),
    ],
)
def test_malformed_schemas_are_named(bad: Any, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        check_tools([bad])


def test_bare_schemas_are_wrapped() -> None:
    bare = {"name": "clock", "description": "The time.", "parameters": {}}
    assert is_bare(bare) and not is_bare(tool())
    assert wrapped(bare) == wrapped({"type": "function", **bare}) == {"type": "function", "function": bare}
