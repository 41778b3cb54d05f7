"""The format `instruction`: what Alpaca made common, an instruction with an optional input and the output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from finetooth_hooks import Conversation, Message, Row
from finetooth_hooks.context import Context

from finetooth_formats import columns
from finetooth_formats.aliases import AliasedOptions
from finetooth_formats.history import read_history


class InstructionOptions(AliasedOptions):
    """Options of `instruction`."""

    aliases: ClassVar[Mapping[str, str]] = {
        "field_instruction": "instruction",
        "field_input": "input",
        "field_output": "output",
        "field_system": "system_column",
        "system_prompt": "system",
        "field_history": "history",
    }

    instruction: str = "instruction"
    """The column with what is to be done."""
    input: str = "input"
    """The column with what it is to be done to; may be missing or empty."""
    output: str = "output"
    """The column with the right answer."""
    system: str = ""
    """A system message before every conversation; empty for none. The row's own (see `system_column`) comes first."""
    system_column: str = "system"
    """The column with a system message; may be missing."""
    history: str = "history"
    """The column with the turns before, `[["question", "answer"], ...]`; may be missing. Their answers train as
    `method.train_on` says."""


def build(options: InstructionOptions, context: Context) -> Instruction:
    options.tell(context)
    return Instruction(options)


class Instruction:
    """Rows become a user message (instruction, blank line, input) and an assistant message (output)."""

    def __init__(self, options: InstructionOptions) -> None:
        self._options = options

    def detect(self, values: Mapping[str, Any]) -> str | None:
        names = (self._options.instruction, self._options.output)
        return f"has the columns {names[0]!r} and {names[1]!r}" if columns.present(values, *names) else None

    def read(self, row: Row) -> Conversation:
        """
        Raises:
            DataError: a column is missing, no text, or empty.
        """
        options = self._options
        ask = columns.text(row, options.instruction, "instruction")
        if columns.present(row.values, options.input):
            given = columns.text(row, options.input, "instruction", empty=True)
            ask = f"{ask}\n\n{given}" if given else ask
        answer = columns.text(row, options.output, "instruction", answer=True)
        said = columns.optional_text(row, options.system_column, "instruction") or options.system
        system = (Message("system", said),) if said else ()
        before = read_history(row, options.history)
        return Conversation((*system, *before, Message("user", ask), Message("assistant", answer)))
