"""The format `stepwise`: an answer in steps, each with a label."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from finetooth_hooks import DataError, Row
from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import ReadRow, Stepwise

from finetooth_formats import columns, graded_steps
from finetooth_formats.columns import kind
from finetooth_formats.message_options import MessageOptions
from finetooth_formats.messages import MessageReader
from finetooth_formats.sides import SideReader, finite
from finetooth_formats.unusable import NO_PROMPT, Policy, left_out, no_prompt

OTHER_COUNT = "another number of labels than of steps"


class StepwiseOptions(MessageOptions):
    """Options of `stepwise`."""

    prompt: str = "prompt"
    """Column with the problem."""
    completions: str = "completions"
    """Column with the steps, a list of texts. Rows of three other formats are recognised by their columns: PRM800K,
    `steps` with a `mistake_index` from 0 (null: no mistake), and `model_output_steps` with
    `model_output_solution_first_error_step` from 1. Steps after a mistake are left out."""
    labels: str = "labels"
    """Column with a label for each step: true or false, or numbers."""
    neutral: Literal["good", "bad"] = "good"
    """Label of a PRM800K step that was rated 0, neither right nor wrong."""
    alternatives: bool = False
    """Whether each PRM800K completion that was rated but not continued also becomes an example: the steps before it,
    without labels, and itself."""
    unusable: Policy = "drop"
    """What happens to a row that teaches nothing (no steps, no rated step, a number of labels other than that of steps,
    no prompt): `drop` leaves it out and counts it by reason, `raise` is an error."""


def build(options: StepwiseOptions, context: Context) -> StepwiseFormat:
    options.tell(context)
    reader = MessageReader(**options.about_messages(), note=context.note, format_="stepwise")
    return StepwiseFormat(options, reader)


class StepwiseFormat:
    """Rows with steps."""

    def __init__(self, options: StepwiseOptions, reader: MessageReader) -> None:
        self._options, self._reader, self._sides = options, reader, SideReader(reader, "stepwise")

    def detect(self, values: Mapping[str, Any]) -> str | None:
        options = self._options
        if graded_steps.lists(values, (options.completions, options.labels)):
            return f"has lists {options.completions!r} and {options.labels!r}"
        return graded_steps.detect(values)

    def read(self, row: Row) -> ReadRow:
        """Reads a prompt and its steps, each with its label.

        Raises:
            DataError: a column is missing or wrong; with `unusable: raise`, nothing can be learned from the row.
        """
        options = self._options
        if not columns.present(row.values, options.completions) and graded_steps.detect(row.values):
            return self._read_graded(row)
        prompt = self._sides.messages(row, options.prompt, "user")
        problem = graded_steps.NO_STEP if _is_empty(row, options.completions) else ""
        if problem := NO_PROMPT if no_prompt(prompt) else problem:
            return left_out(row, problem, options)
        steps = self._list(row, options.completions, "texts", lambda value: isinstance(value, str) and value != "")
        labels = self._list(row, options.labels, "true, false or numbers", lambda value: isinstance(value, int | float))
        if len(steps) != len(labels):
            if options.unusable == "raise":
                raise DataError(
                    row.id,
                    f"{len(steps)} steps in {options.completions}, {len(labels)} in {options.labels}",
                    action="give every step one label",
                )
            return left_out(row, OTHER_COUNT, options)
        for i, step in enumerate(steps):
            if problem := columns.unspeakable(step):
                raise DataError(row.id, f"{options.completions}[{i}] {problem}", action="write the whole character")
        numbers: list[bool | float | None] = [
            label if isinstance(label, bool) else finite(row, f"{options.labels}[{i}]", label)
            for i, label in enumerate(labels)
        ]
        return Stepwise(prompt, tuple(steps), tuple(numbers))

    def _read_graded(self, row: Row) -> ReadRow:
        """A solution in one of the published shapes."""
        options = self._options
        once = self._reader.once
        graded = graded_steps.read(row, options.neutral == "good", once, None if options.alternatives else once)
        prompt = self._sides.messages(row, graded.prompt, "user")
        if problem := NO_PROMPT if no_prompt(prompt) else graded.problem * (not graded.others):
            return left_out(row, problem, options)
        whole = [Stepwise(prompt, graded.steps, graded.labels)] if graded.steps else []
        others = [Stepwise(prompt, steps, (*[None] * (len(steps) - 1), label)) for steps, label in graded.others]
        rows = [*whole, *others]
        return rows if len(rows) > 1 else rows[0]

    def _list(self, row: Row, column: str, of: str, holds: Callable[[Any], bool]) -> Sequence[Any]:
        value = columns.value(row.values, column)
        if value is None:
            raise columns.missing(row, column, "stepwise")
        if not isinstance(value, list | tuple) or not value:
            raise DataError(
                row.id, f"{column} is {kind(value) if value else 'empty'}, not a list of {of}", action="fix it"
            )
        for i, item in enumerate(value):
            if not holds(item):
                state = "empty" if item == "" else kind(item)
                raise DataError(
                    row.id, f"{column}[{i}] is {state}; the list holds {of}", action="fix or remove the row"
                )
        return value


def _is_empty(row: Row, column: str) -> bool:
    value = columns.value(row.values, column)
    return isinstance(value, list | tuple) and not value
