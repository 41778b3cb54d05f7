"""The format `stepwise`: an answer in steps, each with a label of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetooth_hooks import DataError, Options, Row
from finetooth_hooks.context import Context
from finetooth_hooks.examples import Stepwise

from finetooth_formats import columns
from finetooth_formats.columns import kind
from finetooth_formats.messages import MessageReader
from finetooth_formats.sides import SideReader


class StepwiseOptions(Options):
    """Options of `stepwise`."""

    prompt: str = "prompt"
    """The column with the problem."""
    completions: str = "completions"
    """The column with the steps, a list of texts."""
    labels: str = "labels"
    """The column with a label for each step: true or false, or numbers."""


def build(options: StepwiseOptions, context: Context) -> StepwiseFormat:
    return StepwiseFormat(options, MessageReader(note=context.note))


class StepwiseFormat:
    """Rows with steps."""

    def __init__(self, options: StepwiseOptions, reader: MessageReader) -> None:
        self._options, self._sides = options, SideReader(reader, "stepwise")

    def detect(self, values: Mapping[str, Any]) -> str | None:
        given = self._options
        lists = all(isinstance(values.get(name), list | tuple) for name in (given.completions, given.labels))
        return f"has lists {given.completions!r} and {given.labels!r}" if lists else None

    def read(self, row: Row) -> Stepwise:
        """
        Raises:
            DataError: a column is missing or wrong, or steps and labels are not equally many.
        """
        given = self._options
        prompt = self._sides.messages(row, given.prompt, "user")
        steps = self._list(row, given.completions, "texts", lambda value: isinstance(value, str) and value != "")
        labels = self._list(row, given.labels, "true, false or numbers", lambda value: isinstance(value, int | float))
        if len(steps) != len(labels):
            raise DataError(
                row.id, f"{len(steps)} steps in {given.completions}, {len(labels)} in {given.labels}", action="fix it"
            )
        return Stepwise(prompt, tuple(steps), tuple(labels))

    def _list(self, row: Row, column: str, of: str, holds: Any) -> Sequence[Any]:
        value = row.values.get(column)
        if value is None:
            raise columns.missing(row, column, "stepwise")
        if not isinstance(value, list | tuple) or not value:
            raise DataError(
                row.id, f"{column} is {kind(value) if value else 'empty'}, not a list of {of}", action="fix it"
            )
        for i, item in enumerate(value):
            if not holds(item):
                found = "empty" if item == "" else kind(item)
                raise DataError(
                    row.id, f"{column}[{i}] is {found}; the list holds {of}", action="fix or remove the row"
                )
        return value
