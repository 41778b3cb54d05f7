"""Several answers to one prompt that were ranked or scored: the best and the worst of them make a pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from finetooth_hooks import DataError, Row

from finetooth_formats import columns
from finetooth_formats.columns import kind
from finetooth_formats.sides import Messages, SideReader, finite

Order = Literal["high", "low"]
"""Which numbers are better."""


def best_and_worst(
    row: Row, responses: str, judgements: str, order: Order, sides: SideReader
) -> tuple[Messages, Messages, float]:
    """The best answer, the worst one, and how far their numbers lie apart. Of several that are equally good the first
    is taken.

    Args:
        responses: the column with the answers, texts or lists of messages.
        judgements: the column with a number for each.
        order: whether `high` or `low` numbers are better.

    Raises:
        DataError: a column is wrong, they are not equally long, or no answer is better than another.
    """
    answers = _list(row, responses, "answers")
    given = _list(row, judgements, "numbers")
    if len(answers) != len(given):
        raise DataError(
            row.id, f"{len(answers)} answers in {responses}, {len(given)} numbers in {judgements}", action="fix the row"
        )
    numbers = [_number(row, f"{judgements}[{i}]", value) for i, value in enumerate(given)]
    best, worst = max(numbers), min(numbers)
    if best == worst:
        raise DataError(
            row.id, f"{judgements} says of no answer that it is better than another", action="remove the row"
        )
    if order == "low":
        best, worst = worst, best
    chosen, rejected = (
        sides.answer(row, f"{responses}[{numbers.index(number)}]", answers[numbers.index(number)])
        for number in (best, worst)
    )
    return chosen, rejected, abs(best - worst)


def is_ranked(values: Mapping[str, Any], responses: str, judgements: str) -> bool:
    """Whether a row has both columns, as lists."""
    return all(isinstance(columns.value(values, name), list | tuple) for name in (responses, judgements))


def _list(row: Row, column: str, of: str) -> Sequence[Any]:
    found = columns.value(row.values, column)
    if found is None:
        raise columns.missing(row, column, "preference")
    if not isinstance(found, list | tuple) or len(found) < 2:
        what = "shorter than two" if isinstance(found, list | tuple) else f"{kind(found)}, not a list of {of}"
        raise DataError(row.id, f"{column} is {what}", action="fix or remove the row")
    return found


def _number(row: Row, path: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(row.id, f"{path} is {kind(value)}, not a number", action="fix or remove the row")
    return finite(row, path, value)
