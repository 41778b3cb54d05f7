"""What is asked in a run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import Message, Task
from finetooth_hooks.errors import DataError


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

    def check_room(self, context: Context, answer: int) -> None:
        """Checks that the model has room for an answer to each prompt.

        Args:
            answer: tokens that must have room behind a prompt.

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
                f"{count} tokens of the prompt and {answer} of an answer are more than the {most} that the model "
                f"reads{others}",
                action="shorten or remove the row, or lower method.max_completion_length",
            )


def messages_of(task: Task) -> tuple[Message, ...]:
    """The prompt of a task as messages."""
    return (Message("user", task.prompt),) if isinstance(task.prompt, str) else tuple(task.prompt)
