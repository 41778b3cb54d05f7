"""The format `labelled`: an answer with a label, desirable or not, or how good it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from finetooth_hooks import DataError, Row
from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import Labelled, LeftOut, Side
from pydantic import model_validator

from finetooth_formats import columns
from finetooth_formats.columns import kind, shown
from finetooth_formats.media import RowMedia
from finetooth_formats.message_options import MessageOptions
from finetooth_formats.messages import MessageReader
from finetooth_formats.sides import Messages, SideReader, finite, spelled
from finetooth_formats.unusable import NO_PROMPT, Policy, answer_problem, left_out, no_prompt


class LabelledOptions(MessageOptions):
    """Options of `labelled`."""

    aliases: ClassVar[Mapping[str, str]] = {
        **MessageOptions.aliases,
        "field_prompt": "prompt",
        "field_completion": "completion",
        "field_label": "label",
        "field_system": "system_column",
        "field_tools": "tools",
    }

    prompt: str = "prompt"
    """Column with the prompt; empty for texts without one."""
    input: str = ""
    """Column with the input of a text prompt, which is appended to it; empty for none. It may be missing in a row."""
    separator: str = "\n\n"
    """Text between a prompt and its `input`."""
    completion: str = "completion"
    """Column with the answer, or with the whole text; empty if the last message of `prompt` is the answer."""
    label: str = "label"
    """Column with the label: true or false, or a number."""
    threshold: float | None = None
    """Turns numbers into labels: true from this number upwards, false below. Left out, numbers stay numbers."""
    unusable: Policy = "drop"
    """What happens to a row that teaches nothing (its answer is empty or not the assistant's, its prompt is missing):
    `drop` leaves it out and counts it by reason, `raise` is an error."""
    system_column: str = "system"
    """Column with a system message; may be missing."""
    tools: str = "tools"
    """Column with tool schemas; may be missing."""

    @model_validator(mode="after")
    def _says_something(self) -> LabelledOptions:
        if not self.prompt and not self.completion:
            raise ValueError("prompt and completion are both empty: name the column with the text")
        return self


class LabelledTextOptions(LabelledOptions):
    """Options of `labelled_text`: those of `labelled`, for a text without a prompt."""

    prompt: str = ""
    """Column with the prompt; empty for texts without one."""
    completion: str = "text"
    """Column with the whole text."""


def build_text(options: LabelledTextOptions, context: Context) -> LabelledFormat:
    """Builder of `labelled_text`."""
    return build(options, context)


def build(options: LabelledOptions, context: Context) -> LabelledFormat:
    options.tell(context)
    reader = MessageReader(
        **options.about_messages(), note=context.note, format_="labelled", may_be_empty=("system", "assistant")
    )
    return LabelledFormat(options, reader)


class LabelledFormat:
    """Rows with a label."""

    def __init__(self, options: LabelledOptions, reader: MessageReader) -> None:
        self._options, self._reader = options, reader
        self._sides = SideReader(reader, "labelled", (options.input, options.separator))

    def detect(self, values: Mapping[str, Any]) -> str | None:
        options = self._options
        wanted = [name for name in (options.prompt, options.completion, options.label) if name]
        if not options.prompt and not isinstance(spelled(columns.value(values, options.label)), int | float):
            return None  # a text that is sorted by words, which are not a score
        return f"has the columns {', '.join(map(repr, wanted))}" if columns.present(values, *wanted) else None

    def read(self, row: Row) -> Labelled | LeftOut:
        """Reads a prompt, a completion and its label.

        Raises:
            DataError: a column is missing or wrong, or an image or sound has no place; with `unusable: raise`, the
                answer or the prompt is empty.
        """
        options = self._options
        media = RowMedia(row, options.media_columns)
        if media.present and not options.prompt:
            raise DataError(row.id, "it has images or sounds, and a text without a prompt has no place for them",
                            action="name the column with the prompt")  # fmt: skip
        label = spelled(value := columns.value(row.values, options.label))
        if label is None:
            raise self._missing(row, value)
        if not isinstance(label, bool):
            if not isinstance(label, int | float):
                what = f"text ({shown(label)})" if isinstance(label, str) else kind(label)
                raise DataError(row.id, f"{options.label} is {what}, not true, false or a number", action="fix the row")
            label = finite(row, options.label, label)
            label = label if options.threshold is None else label >= options.threshold
        if isinstance(value, str):
            where = f"{options.label} is text in {row.id} and maybe other rows"
            self._reader.once("text label", f"{where}; its words are read as true, false or numbers")
        tools = self._reader.tools(row.id, columns.value(row.values, options.tools))
        prompt: Side = ""
        answer: Side
        if options.prompt:
            prompt, answer = self._prompt_and_answer(row, media)
            media.finish()
        else:
            answer = self._sides.text(row, options.completion)
        if (
            problem := NO_PROMPT
            if no_prompt(prompt)
            else answer_problem(answer, options.completion or "the last message")
        ):
            return left_out(row, problem, options)
        if not isinstance(prompt, str):
            prompt = self._sides.with_system(row, options.system_column, prompt)
        return Labelled(prompt, answer, label, tools)

    def _prompt_and_answer(self, row: Row, media: RowMedia) -> tuple[Messages, Messages]:
        options = self._options
        prompt = self._sides.messages(row, options.prompt, "user", media)
        if not options.completion:
            return prompt[:-1], prompt[-1:]
        value = columns.value(row.values, options.completion)
        if value is None:
            raise columns.missing(row, options.completion, "labelled")
        return prompt, self._sides.answer_of(row, options.completion, value, media)

    def _missing(self, row: Row, value: Any) -> DataError:
        """The error for a missing label, or a blank text."""
        if isinstance(value, str):
            return DataError(row.id, f"{self._options.label} is empty", action="remove the row or fill it in")
        return columns.missing(row, self._options.label, "labelled")
