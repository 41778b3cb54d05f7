"""Unusable rows: counted, and the first few named. Portions are counted separately and merged in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetooth_hooks.errors import DataError

SHOWN = 5
"""The most broken rows that an error names."""


@dataclass
class Problems:
    """Rows that cannot be used: how many, and the first few.

    Attributes:
        count: all of them.
        first: one error a row, at most `SHOWN`; its problem begins with the row's id.
        shapes: numbers of rows by their form (`DataError.shape`), if known.
    """

    count: int = 0
    first: list[DataError] = field(default_factory=list)
    shapes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, errors: Sequence[DataError]) -> Problems:
        """From all errors."""
        return cls(len(errors), list(errors[:SHOWN]))

    def add(self, error: DataError) -> None:
        """One more row."""
        self.merge(Problems(1, [error], {error.shape: 1} if error.shape else {}))

    def merge(self, later: Problems) -> None:
        """Merge the problems of the following rows."""
        self.count += later.count
        self.first += later.first[: SHOWN - len(self.first)]
        for shape, count in later.shapes.items():
            self.shapes[shape] = self.shapes.get(shape, 0) + count

    def error(self, rows: int, noun: str = "rows", *, counted: bool = False) -> DataError | None:
        """One error that names the first few and counts them all; None if there are none.

        Args:
            rows: number of checked rows.
            noun: for them.
            counted: give the numbers even for a single one.
        """
        if not self.count:
            return None
        if self.count == 1 and not counted:
            return self.first[0]
        shown = said_once((error.where, _without_place(error)) for error in self.first)
        more = f"; and {self.count - SHOWN} more" if self.count > SHOWN else ""
        looks = ", ".join(f"{count} like {shape}" for shape, count in self.shapes.items())
        looks = f"; they look {looks}" if looks else ""
        where = f"{self.count} of {rows} {noun} cannot be used"
        return DataError(where, f"{shown}{more}{looks}", action=self.first[0].action)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        first = [error_as_json(error) for error in self.first]
        return {"count": self.count, "first": first, "shapes": self.shapes}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Problems:
        """From `as_json`."""
        first = [error_from_json(error) for error in content["first"]]
        return cls(content["count"], first, dict(content["shapes"]))


def said_once(problems: Iterable[tuple[str, str]]) -> str:
    """Problems with their places in one line; equal problems are merged: `a:1, a:2: it is empty; a:5: it is too long`.

    Args:
        problems: place, which may be empty, and problem.
    """
    places: dict[str, list[str]] = {}
    for place, problem in problems:
        places.setdefault(problem, []).append(place)
    return "; ".join(": ".join(filter(None, (", ".join(filter(None, at)), problem))) for problem, at in places.items())


def raise_together(errors: Sequence[DataError]) -> None:
    """Raise nothing for no errors, the error itself for one, and one joint error for several."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        actions = dict.fromkeys(error.action for error in errors if error.action)
        raise DataError("", "; ".join(error.problem for error in errors), action="; ".join(actions))


def error_as_json(error: DataError) -> list[str]:
    """An error as plain data."""
    return [error.where, _without_place(error), error.action]


def _without_place(error: DataError) -> str:
    return error.problem.removeprefix(f"{error.where}: ") if error.where else error.problem


def error_from_json(content: Sequence[str]) -> DataError:
    """From `error_as_json`."""
    where, problem, action = content
    return DataError(where, problem, action=action)
