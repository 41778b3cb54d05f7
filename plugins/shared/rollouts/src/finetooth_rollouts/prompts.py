"""What is asked in a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import Message, Task
from finetooth_hooks.errors import DataError
from pydantic import AfterValidator

ANSWERS = "method.max_completion_length"
"""The setting that bounds answers, and with them the rows that train."""


@dataclass(frozen=True)
class Prompts:
    """What is asked in a run.

    Attributes:
        rows: read.
        tasks: by id.
        tokens: of each prompt, in the order of the rows.
    """

    rows: int
    tasks: dict[str, Task]
    tokens: list[tuple[str, tuple[int, ...]]]

    @cached_property
    def by_id(self) -> dict[str, tuple[int, ...]]:
        """Tokens of each prompt by id."""
        return dict(self.tokens)

    @property
    def columns(self) -> set[str]:
        """Names of columns that any row has in addition to its prompt."""
        return {name for task in self.tasks.values() for name in task.columns}

    @classmethod
    def read(cls, context: Context) -> Prompts:
        """Reads the tasks of the training rows and renders their prompts.

        Raises:
            DataError: a row has an answer already, comes under the id of another, or has arguments of its own for the
                chat template.
        """
        rows = context.examples("train").rows
        prompts = cls(len(rows), {}, [])
        for id_, example in rows:
            if not isinstance(example, Task):
                raise DataError(id_, "the row has an answer already", action="set data.format: task")
            if id_ in prompts.tasks:
                raise DataError(id_, "another row has the same id", action="give every row an id of its own")
            if example.columns.get("chat_template_kwargs"):
                raise DataError(
                    id_,
                    "the row has chat_template_kwargs of its own, and all rows are written by one template",
                    action="set data.renderer: {name: jinja, arguments: {...}} for all of them, split the rows over "
                    "several runs, or take the column out",
                )
            prompts.tasks[id_] = example
            prompts.tokens.append((id_, tuple(context.renderer.prompt(messages_of(example), example.tools))))
        return prompts

    def check_room(
        self, context: Context, answer: int, *, of: str = "the prompt",
        action: str = "shorten or remove the row, or lower method.max_completion_length",
    ) -> None:  # fmt: skip
        """Checks that the model has room for an answer to each prompt.

        Args:
            answer: tokens that must have room behind a prompt.
            of, action: what has the tokens, and what to do, for the error.

        Raises:
            DataError: the model has no room for them; names the row.
        """
        most = context.facts.max_positions
        long = [(id_, len(tokens)) for id_, tokens in self.tokens if most and len(tokens) + answer > most]
        if long:
            id_, count = long[0]
            others = f", and {len(long) - 1} rows more" if len(long) > 1 else ""
            raise DataError(
                id_,
                f"{count} tokens of {of} and {answer} of an answer are more than the {most} that the model "
                f"reads{others}",
                action=action,
            )


def messages_of(task: Task) -> tuple[Message, ...]:
    """The prompt of a task as messages."""
    return (Message("user", task.prompt),) if isinstance(task.prompt, str) else tuple(task.prompt)


def shows(*places: str) -> AfterValidator:
    """A check of an option: its text has a place, as in `{prompt}`, for each of these."""

    def check(text: str) -> str:
        for place in places:
            if f"{{{place}}}" not in text:
                raise ValueError(f"it does not say {{{place}}}: put it where it is to stand")
        return text

    return AfterValidator(check)


def filled(text: str, **values: str) -> str:
    """The text with its places filled. A place within a value, or of another name, is text."""
    return re.sub(r"\{(\w+)\}", lambda place: values.get(place[1], place[0]), text)


def later_turns(task: Task) -> list[tuple[tuple[Message, ...], str]]:
    """What a row says behind its first answer, turn by turn: what the policy is shown, and the reference answer to it.
    It is in the column `remaining_turns`, as messages, which `format: {name: task, turns: sequential}` writes.

    Raises:
        DataError: the column is missing or wrong, or an answer follows another.
    """
    listed = task.columns.get("remaining_turns")
    action = "set data.format: {name: task, prompt: COLUMN, turns: sequential}"
    if not isinstance(listed, list | tuple):
        raise DataError("remaining_turns", "the row has no such list of messages", action=action)
    turns: list[tuple[tuple[Message, ...], str]] = []
    shown: list[Message] = []
    for of in listed:
        role, content = (of.get("role"), of.get("content")) if isinstance(of, Mapping) else (None, None)
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            raise DataError("remaining_turns", "it holds more than messages of text with a role", action=action)
        if role != "assistant":
            shown.append(Message(role, content))
        elif not shown:
            raise DataError("remaining_turns", "two turns of the assistant follow each other", action="join them")
        else:
            turns.append((tuple(shown), content))
            shown = []
    return turns
