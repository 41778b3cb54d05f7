"""Which columns ask and answer: by their names, since there are two, as somebody says, or nobody knows."""

from __future__ import annotations

import pytest
from finetooth_hooks import Row, UserError
from finetooth_init.columns import Columns, format_of, guess, shown, texts_of


def rows(**columns: object) -> list[Row]:
    return [Row("a.csv:2", columns), Row("a.csv:3", columns)]


@pytest.mark.parametrize(
    ("columns", "pair"),
    [
        (("agent", "customer"), ("customer", "agent")),
        (("id", "Customer Message", "Agent_Reply", "date"), ("Customer Message", "Agent_Reply")),
        (("userText", "botText"), ("userText", "botText")),
        (("Frage", "Antwort"), ("Frage", "Antwort")),
        (("left", "right"), ("left", "right")),
        (("left", "answer"), ("left", "answer")),
    ],
)
def test_columns_are_guessed(columns: tuple[str, ...], pair: tuple[str, str]) -> None:
    found = guess(rows(**dict.fromkeys(columns, "some text")))
    assert found is not None and (found.prompt, found.completion) == pair
    assert repr(pair[0]) in found.reason and repr(pair[1]) in found.reason


@pytest.mark.parametrize(("name", "noted"), [("Where is my parcel", True), ("Open today?", True), ("left side", False)])
def test_a_row_in_place_of_names_is_noticed(name: str, noted: bool) -> None:
    found = guess(rows(**{name: "some text", "right": "some text"}))
    assert found is not None and ("the first line names the columns" in found.reason) is noted


def test_numbers_are_no_texts() -> None:
    assert texts_of(rows(id=3, a="x", empty=" ")) == ["a"]


def test_what_is_said_is_taken_and_the_rest_is_guessed() -> None:
    given = rows(a="x", b="y", answer="z")
    said: list[str] = []
    assert guess(given) is None
    pick = format_of(given, Columns(prompt="b", system="Be kind."), "a.csv", None, said.append)
    assert pick == {"name": "prompt_completion", "prompt": "b", "completion": "answer", "system": "Be kind."}
    assert "--completion change it" in said[0] and said[1] == shown(given)


def test_who_is_there_is_asked_with_a_proposal() -> None:
    asked: list[tuple[str, str]] = []

    def ask(question: str, proposal: str) -> str:
        asked.append((question, proposal))
        return "a" if "answer?" in question else proposal

    pick = format_of(rows(a="x", b="y", c="z"), Columns(), "a.csv", ask, lambda line: None)
    assert [proposal for _, proposal in asked] == ["a", "c", ""]
    assert pick == {"name": "prompt_completion", "prompt": "a", "completion": "a"}


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (Columns(prompt="x"), "--prompt x: a.csv has no such column (choose of a, b, c)"),
        (Columns(), "name them with --prompt COLUMN --completion COLUMN"),
    ],
)
def test_what_nobody_knows_is_refused_with_what_to_type(columns: Columns, said: str) -> None:
    with pytest.raises(UserError) as error:
        format_of(rows(a="x", b="y", c="z"), columns, "a.csv", None, lambda line: None)
    assert said in str(error.value)
