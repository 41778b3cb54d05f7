"""The format `labelled`: an answer with a label, desirable or not, or how good it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from finetooth_hooks import DataError, Row
from finetooth_hooks.context import Context
from finetooth_hooks.examples import Labelled

from finetooth_formats import columns
from finetooth_formats.columns import kind
from finetooth_formats.message_options import MessageOptions
from finetooth_formats.messages import MessageReader
from finetooth_formats.sides import SideReader, finite


class LabelledOptions(MessageOptions):
    """Options of `labelled`."""

    aliases: ClassVar[Mapping[str, str]] = {
        **MessageOptions.aliases,
        "field_prompt": "prompt",
        "field_completion": "completion",
        "field_label": "label",
        "field_tools": "tools",
    }

    prompt: str = "prompt"
    """The column with the prompt; empty for texts that have none."""
    completion: str = "completion"
    """The column with the answer, or with the whole text."""
    label: str = "label"
    """The column with the label: true or false, or a number."""
    tools: str = "tools"
    """The column with tool schemas; may be missing."""


def build(options: LabelledOptions, context: Context) -> LabelledFormat:
    options.tell(context)
    reader = MessageReader(**options.about_messages(), note=context.note, format_="labelled")
    return LabelledFormat(options, reader)


class LabelledFormat:
    """Rows with a label."""

    def __init__(self, options: LabelledOptions, reader: MessageReader) -> None:
        self._options, self._reader = options, reader
        self._sides = SideReader(reader, "labelled")

    def detect(self, values: Mapping[str, Any]) -> str | None:
        given = self._options
        wanted = [name for name in (given.prompt, given.completion, given.label) if name]
        return f"has the columns {', '.join(map(repr, wanted))}" if columns.present(values, *wanted) else None

    def read(self, row: Row) -> Labelled:
        """
        Raises:
            DataError: a column is missing or wrong.
        """
        given = self._options
        label = columns.value(row.values, given.label)
        if label is None:
            raise columns.missing(row, given.label, "labelled")
        if not isinstance(label, bool):
            if not isinstance(label, int | float):
                raise DataError(
                    row.id, f"{given.label} is {kind(label)}, not true, false or a number", action="fix the row"
                )
            label = finite(row, given.label, label)
        tools = self._reader.tools(row.id, columns.value(row.values, given.tools))
        if not given.prompt:
            return Labelled("", self._sides.text(row, given.completion), label, tools)
        prompt = self._sides.messages(row, given.prompt, "user")
        return Labelled(prompt, self._sides.messages(row, given.completion, "assistant"), label, tools)
