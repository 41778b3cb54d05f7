"""The format `prompt_completion`: two columns, a prompt and its completion."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from finetooth_hooks import Conversation, DataError, Example, Message, PromptCompletion, Row
from finetooth_hooks.context import Context
from pydantic import model_validator

from finetooth_formats import columns
from finetooth_formats.history import read_history
from finetooth_formats.media import RowMedia
from finetooth_formats.message_options import MessageOptions
from finetooth_formats.messages import MessageReader

PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("problem", "solution"),
    ("query", "response"),
    ("input", "output"),
)
"""Column names that are found by themselves, in this order."""

STYLES = {"chat": "one user and one assistant message", "raw": "plain prompt and completion"}


class PromptCompletionOptions(MessageOptions):
    """Options of `prompt_completion`."""

    aliases: ClassVar[Mapping[str, str]] = {
        **MessageOptions.aliases,
        "field_prompt": "prompt",
        "field_completion": "completion",
        "field_tools": "tools",
        "field_system": "system_column",
        "field_history": "history",
    }

    prompt: str = ""
    """Column with the prompt; empty takes a known pair (prompt/completion, prompt/response, question/answer,
    problem/solution, query/response, input/output)."""
    completion: str = ""
    """Column with the completion; set it together with `prompt`."""
    style: Literal["chat", "raw"] = "chat"
    """`chat` turns them into a user and an assistant message in the model's markup; `raw` puts the completion right
    after the prompt, without any markup."""
    system: str = ""
    """System message for every conversation; empty for none. Only with style `chat`. The row's own (see
    `system_column`) takes precedence."""
    system_column: str = "system"
    """Column with a system message, read with style `chat`; may be missing."""
    history: str = "history"
    """Column with earlier turns, `[["question", "answer"], ...]`, read if the prompt is a text and the style `chat`;
    may be missing. Their answers train as `method.train_on` says."""
    tools: str = "tools"
    """Column with tool schemas, read with messages; may be missing."""

    @model_validator(mode="after")
    def _together(self) -> PromptCompletionOptions:
        if bool(self.prompt) != bool(self.completion):
            raise ValueError("give both prompt and completion, or neither")
        if self.system and self.style == "raw":
            raise ValueError("system needs style chat: a raw prompt has no system message")
        return self


def build(options: PromptCompletionOptions, context: Context) -> PromptCompletionFormat:
    options.tell(context)
    reader = MessageReader(**options.about_messages(), note=context.note, format_="prompt_completion")
    return PromptCompletionFormat(options, reader)


class PromptCompletionFormat:
    """Rows with a prompt and its completion, both texts or both lists of messages."""

    def __init__(self, options: PromptCompletionOptions, reader: MessageReader) -> None:
        self._options, self._reader = options, reader
        self._pairs = ((options.prompt, options.completion),) if options.prompt else PAIRS

    def detect(self, values: Mapping[str, Any]) -> str | None:
        pair = columns.first_pair(values, self._pairs)
        if pair is None or (not self._options.prompt and columns.shape(values).split(" ")[0] != "prompt_completion"):
            return None
        return f"has the columns {pair[0]!r} and {pair[1]!r}, read as {STYLES[self._options.style]}"

    def read(self, row: Row) -> Example:
        """Reads a prompt and its completion.

        Raises:
            DataError: a column is missing, of the wrong type, or empty.
        """
        pair = columns.first_pair(row.values, self._pairs)
        if pair is None:
            raise self._no_pair_error(row)
        prompt, completion = (columns.value(row.values, name) for name in pair)
        if isinstance(prompt, list | tuple) and isinstance(completion, list | tuple):
            return self._conversation(row, pair)
        ask = columns.text(row, pair[0], "prompt_completion")
        answer = columns.text(row, pair[1], "prompt_completion", answer=True)
        if self._options.style == "raw":
            return PromptCompletion(ask, answer)
        system = self._system(row)
        before = read_history(row, self._options.history)
        media = RowMedia(row, self._options.media_columns)
        question = self._reader.text_message(row.id, pair[0], "user", ask, media)
        media.finish()
        return Conversation((*system, *before, question, Message("assistant", answer)))

    def _system(self, row: Row) -> tuple[Message, ...]:
        """The system message of the row, or the one of the recipe."""
        column = self._options.system_column
        own = columns.value(row.values, column) if column else None
        system_text = ("" if own is None else self._reader.system(row.id, column, own)) or self._options.system
        return (Message("system", system_text),) if system_text else ()

    def _conversation(self, row: Row, pair: tuple[str, str]) -> Conversation:
        """Lists of messages: those of the prompt do not train, for any role."""
        if self._options.style == "raw":
            raise DataError(
                row.id, f"{pair[0]} is a list of messages, which style raw cannot read", action="use style: chat"
            )
        media = RowMedia(row, self._options.media_columns)
        before = self._reader.read(row.id, pair[0], columns.value(row.values, pair[0]), media)
        after = self._reader.read(row.id, pair[1], columns.value(row.values, pair[1]), media)
        media.finish()
        prompt = tuple(dataclasses.replace(message, train=False) for message in before)
        tools = self._reader.tools(row.id, columns.value(row.values, self._options.tools))
        system = () if prompt[0].role == "system" else self._system(row)
        return Conversation((*system, *prompt, *after), tools)

    def _no_pair_error(self, row: Row) -> DataError:
        """Name the missing partner of a column."""
        for prompt, completion in self._pairs:
            for here, absent in ((prompt, completion), (completion, prompt)):
                if columns.present(row.values, here):
                    error = columns.missing(row, absent, "prompt_completion")
                    return DataError(
                        row.id,
                        f"{here!r} without {absent!r}: {error.problem.removeprefix(f'{row.id}: ')}",
                        action=error.action,
                    )
        return columns.missing(row, self._pairs[0][0], "prompt_completion")
