"""What is wrong with several rows, in one line."""

from __future__ import annotations

from finetooth_hooks import DataError
from finetooth_hooks.data.problems import Problems, said_once


def test_one_sentence_is_said_once_with_all_its_places() -> None:
    errors = [DataError(f"a.jsonl:{line}", "the answer is empty", action="fill it") for line in range(1, 8)]
    error = Problems.of(errors).error(9)
    places = ", ".join(f"a.jsonl:{line}" for line in range(1, 6))
    assert str(error) == f"7 of 9 rows cannot be used: {places}: the answer is empty; and 2 more (fill it)"


def test_different_sentences_keep_their_order() -> None:
    found = [("a:1", "empty"), ("a:2", "too long"), ("a:3", "empty"), ("", "no place")]
    assert said_once(found) == "a:1, a:3: empty; a:2: too long; no place"


def test_nothing_is_lost_on_the_way_to_another_process() -> None:
    told = Problems.of([DataError("a:1", "empty", action="fill it"), DataError("", "a:2: odd")])
    again = Problems.from_json(told.as_json())
    assert [str(error) for error in again.first] == [str(error) for error in told.first]
