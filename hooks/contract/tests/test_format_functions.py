"""A decorated function is a whole format: it is found, detected, read, and what is wrong in it names the row."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import pytest
from finetooth_hooks import Conversation, DataError, Format, Message, Row, Text, row_format
from finetooth_kit import FakeContext, entries_of

SOURCE = '''
from finetooth_hooks import Conversation, Message, Text, DataError, row_format

@row_format("ask", "reply")
def tickets(values):
    """Questions to the help desk.

    And their answers."""
    if values["ask"] == "refuse":
        raise DataError("", "too short", action="write more")
    return Conversation((Message("user", values["ask"]), Message("assistant", values["reply"][0:])))

@row_format("body", name="letters", rank=3)
def read_letter(values):
    return values if values["body"] == "wrong" else Text(values["body"])

@row_format()
def anything(values):
    return Text(str(len(values)))
'''


@pytest.fixture
def module() -> Iterator[ModuleType]:
    """As a local file is loaded."""
    made = ModuleType("finetooth_local_tickets")
    sys.modules[made.__name__] = made
    exec(compile(SOURCE, "tickets.py", "exec", dont_inherit=True), made.__dict__)
    yield made
    del sys.modules[made.__name__]


@pytest.fixture
def format_of(module: ModuleType, tmp_path: Any) -> Any:
    context = FakeContext(tmp_path, entries=tuple(entries_of(module)))
    return lambda name: context.build("format", name)


def test_each_function_is_an_entry(module: ModuleType) -> None:
    assert [(entry.name, entry.summary, getattr(entry, "rank", None)) for entry in entries_of(module)] == [
        ("tickets", "Questions to the help desk", 0),
        ("letters", "the function letters of a local file", 3),
        ("anything", "the function anything of a local file", 0),
    ]
    assert all(isinstance(entry, Format) for entry in entries_of(module))


def test_the_function_stays_what_it_is(module: ModuleType) -> None:
    assert module.tickets({"ask": "a", "reply": "b"}).messages == (Message("user", "a"), Message("assistant", "b"))


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("tickets", {"ask": "a", "reply": "b", "more": 1}, "has the columns 'ask', 'reply'"),
        ("tickets", {"ask": "a", "reply": None}, None),
        ("letters", {"body": ""}, "has the column 'body'"),
        ("anything", {"body": ""}, None),
        ("anything", {}, None),
    ],
)
def test_columns_tell(format_of: Any, name: str, values: Mapping[str, Any], reason: str | None) -> None:
    assert format_of(name).detect(values) == reason


def test_rows_are_read(format_of: Any) -> None:
    assert isinstance(format_of("tickets").read(Row("f:1", {"ask": "a", "reply": "b"})), Conversation)
    assert format_of("anything").read(Row("f:1", {})) == Text("0")


@pytest.mark.parametrize(
    ("name", "values", "problem"),
    [
        ("tickets", {"ask": "a"}, "f:3: reply is missing or null"),
        (
            "tickets",
            {"ask": "a", "reply": 3},
            "f:3: format tickets raised TypeError: 'int' object is not subscriptable",
        ),
        ("tickets", {"ask": "refuse", "reply": "b"}, r"f:3: too short \(write more\)"),
        ("letters", {"body": "wrong"}, r"f:3: format letters returned a dict \(return one of Conversation, Text"),
    ],
)
def test_what_is_wrong_names_the_row(format_of: Any, name: str, values: Mapping[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        format_of(name).read(Row("f:3", values))
    assert caught.value.where == "f:3"


def test_parentheses_are_needed() -> None:
    with pytest.raises(TypeError, match=r"row_format takes names of columns"):
        row_format(lambda values: Text(""))  # type: ignore[arg-type]


def test_importing_it_is_light() -> None:
    code = "import sys\nfrom finetooth_hooks import row_format\nprint(sorted({'pydantic', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
