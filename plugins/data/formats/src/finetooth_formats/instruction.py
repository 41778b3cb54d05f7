"""The format `instruction`, known from Alpaca: an instruction with an optional input and the output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from finetooth_hooks import Conversation, Message, Row
from finetooth_hooks.context import Context

from finetooth_formats import columns
from finetooth_formats.aliases import AliasedOptions
from finetooth_formats.history import read_history

OTHERS: Mapping[str, str] = {"input": "context", "output": "response"}
"""Other names of columns, as Databricks' Dolly has them."""


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
    """Column with the instruction."""
    input: str = "input"
    """Column with the input of the instruction; may be missing or empty. If this is not set and the rows have no such
    column, `context` (Dolly)."""
    output: str = "output"
    """Column with the answer. If this is not set and the rows have no such column, `response` (Dolly)."""
    separator: str = "\n\n"
    """Text between the instruction and the input; LLaMA-Factory has one line break."""
    alpaca: bool = False
    """Whether to write the question as Stanford Alpaca's prompt ("Below is an instruction that describes a task."),
    with its headings, inside the model's own markup, as torchtune's `alpaca_dataset` does."""
    system: str = ""
    """System message for every conversation; empty for none. The row's own (see `system_column`) takes precedence."""
    system_column: str = "system"
    """Column with a system message; may be missing."""
    history: str = "history"
    """Column with earlier turns, `[["question", "answer"], ...]`; may be missing. Their answers train as
    `method.train_on` says."""


def build(options: InstructionOptions, context: Context) -> Instruction:
    options.tell(context)
    return Instruction(options)


class Instruction:
    """Rows become a user message (instruction, separator, input) and an assistant message (output)."""

    def __init__(self, options: InstructionOptions) -> None:
        self._options = options

    def detect(self, values: Mapping[str, Any]) -> str | None:
        names = (self._options.instruction, self._column(values, "output"))
        return f"has the columns {names[0]!r} and {names[1]!r}" if columns.present(values, *names) else None

    def _column(self, values: Mapping[str, Any], option: str) -> str:
        """The column of an option: its value, or another common name of such a column."""
        column: str = getattr(self._options, option)
        other = OTHERS[option]
        return (
            other
            if option not in self._options.model_fields_set and column not in values and other in values
            else column
        )

    def read(self, row: Row) -> Conversation:
        """Reads an instruction, its input and its output as a conversation.

        Raises:
            DataError: a column is missing, no text, or empty.
        """
        options = self._options
        ask = columns.text(row, options.instruction, "instruction")
        given_in = self._column(row.values, "input")
        has_input = columns.present(row.values, given_in)
        context = columns.text(row, given_in, "instruction", empty=True) if has_input else ""
        if options.alpaca:
            ask = alpaca_prompt(ask, context)
        elif context:
            ask = f"{ask}{options.separator}{context}"
        answer = columns.text(row, self._column(row.values, "output"), "instruction", answer=True)
        system_text = columns.optional_text(row, options.system_column, "instruction") or options.system
        system = (Message("system", system_text),) if system_text else ()
        before = read_history(row, options.history)
        return Conversation((*system, *before, Message("user", ask), Message("assistant", answer)))


def alpaca_prompt(instruction: str, context: str) -> str:
    """The prompt of Stanford Alpaca (Taori et al., 2023), up to where the answer begins.

    Args:
        context: the input; empty for none.
    """
    paired = ", paired with an input that provides further context" if context else ""
    prompt = (
        f"Below is an instruction that describes a task{paired}. Write a response that appropriately completes the "
    )
    prompt += f"request.\n\n### Instruction:\n{instruction}\n\n"
    return prompt + (f"### Input:\n{context}\n\n" if context else "") + "### Response:\n"
