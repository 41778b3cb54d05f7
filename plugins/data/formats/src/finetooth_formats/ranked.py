"""Several answers to one prompt that were ranked or scored, turned into pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any, Literal

from finetooth_hooks import DataError, Row

from finetooth_formats import columns
from finetooth_formats.columns import kind
from finetooth_formats.sides import finite

Order = Literal["high", "low"]
"""Which numbers are better."""
Pairs = Literal["best-worst", "adjacent", "all"]
"""Which answers are compared: the best with the worst, each with the next worse one, or each with each."""

TIE = "two answers are equally good"
NO_BETTER = "no answer is better than another"


@dataclass(frozen=True)
class Ranked:
    """Two of the answers, by their places in the row.

    Attributes:
        better, worse: places.
        margin: the difference of their numbers; 0 if neither is better.
    """

    better: int
    worse: int
    margin: float


def ranked_pairs(numbers: Sequence[float], order: Order, pairs: Pairs) -> Iterator[Ranked]:
    """Pairs of compared answers, the better one first; of equally good ones the first in the row.

    Args:
        numbers: one for each answer.
        order: whether `high` or `low` ones are better.
    """
    places = sorted(range(len(numbers)), key=lambda place: -numbers[place] if order == "high" else numbers[place])
    if pairs == "best-worst":
        worst = next(place for place in places if numbers[place] == numbers[places[-1]])
        compared: Iterator[tuple[int, int]] = iter([(places[0], worst)])
    else:
        compared = pairwise(places) if pairs == "adjacent" else combinations(places, 2)
    for better, worse in compared:
        yield Ranked(better, worse, abs(numbers[better] - numbers[worse]))


def read_ranking(row: Row, responses: str, judgements: str) -> tuple[Sequence[Any], list[float]]:
    """Answers as the row has them, and a number for each.

    Args:
        responses: the column with the answers.
        judgements: the column with the numbers; empty: they stand in order, the best first, and their ranks are
            0, 1, 2, ...

    Raises:
        DataError: a column is wrong, or they are not equally long.
    """
    answers = _list(row, responses, "answers")
    if not judgements:
        return answers, [float(place) for place in range(len(answers))]
    numbers = _list(row, judgements, "numbers")
    if len(answers) != len(numbers):
        raise DataError(
            row.id,
            f"{len(answers)} answers in {responses}, {len(numbers)} numbers in {judgements}",
            action="fix the row",
        )
    return answers, [_number(row, f"{judgements}[{i}]", value) for i, value in enumerate(numbers)]


def is_ranked(values: Mapping[str, Any], responses: str, judgements: str) -> bool:
    """Whether a row has both columns, as lists."""
    names = (responses, judgements) if judgements else (responses,)
    return all(isinstance(columns.value(values, name), list | tuple) for name in names)


def _list(row: Row, column: str, of: str) -> Sequence[Any]:
    items = columns.value(row.values, column)
    if items is None:
        raise columns.missing(row, column, "preference")
    if not isinstance(items, list | tuple) or len(items) < 2:
        what = "shorter than two" if isinstance(items, list | tuple) else f"{kind(items)}, not a list of {of}"
        raise DataError(row.id, f"{column} is {what}", action="fix or remove the row")
    return items


def _number(row: Row, path: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(row.id, f"{path} is {kind(value)}, not a number", action="fix or remove the row")
    return finite(row, path, value)
