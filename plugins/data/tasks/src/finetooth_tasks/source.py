"""The source: rows of a task, each question once, train and eval apart."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from finetooth_hooks.bases import SourceBase
from finetooth_hooks.data.examples import Row
from finetooth_hooks.errors import DataError
from finetooth_hooks.options import Options
from pydantic import Field

from finetooth_tasks import arithmetic, family, sorting, weekdays
from finetooth_tasks.question import Draws, Question

Split = Literal["train", "eval"]

TASKS: Mapping[str, Callable[[Draws], Question]] = MappingProxyType(
    {
        "arithmetic": arithmetic.generate,
        "family": family.generate,
        "sorting": sorting.generate,
        "weekdays": weekdays.generate,
    }
)

EVAL_FIFTHS = 1
"""Of all possible questions, this many fifths are eval's."""

PATIENCE = 10_000
"""Draws in a row without a new question of the split after which a task counts as exhausted. For the small tasks,
where it matters, that is proof enough: one of 1,400 questions stays unseen for so long once in a thousand runs."""


class TasksOptions(Options):
    """Options of the source `tasks`."""

    task: Literal["arithmetic", "family", "sorting", "weekdays"]
    """The kind of questions: `family`, `arithmetic`, `sorting` or `weekdays`."""

    count: int = Field(default=1000, ge=1)
    """Number of rows."""

    seed: int = Field(default=0, ge=0)
    """Another seed gives other rows; the same seed gives the same rows on every machine."""

    split: Split = "train"
    """`train` or `eval`; no question is in both."""


class TasksSource(SourceBase):
    """Rows `{"prompt": ..., "completion": ...}` with ids such as `tasks:family:train:17`.

    Args:
        options: which task, how many rows, seed and split.
    """

    def __init__(self, options: TasksOptions) -> None:
        self.options = options

    def files(self) -> tuple[Path, ...]:
        """None: the options decide every row."""
        return ()

    def rows(self) -> Iterator[Row]:
        """The rows, the same ones every time; those of a smaller `count` are the first ones of a larger.

        Raises:
            DataError: the task has no `count` different questions in this split.
        """
        options = self.options
        where = f"tasks:{options.task}:{options.split}"
        written = 0
        for question in distinct_questions(TASKS[options.task], options.split, options.seed):
            yield Row(f"{where}:{written}", {"prompt": question.prompt, "completion": question.answer})
            written += 1
            if written == options.count:
                return
        raise DataError(
            where,
            f"the task has {written:,} different questions in this split, and count asks for {options.count:,}",
            action=f"set count to {written} or less, or pick another task",
        )


def split_of(prompt: str) -> Split:
    """The split a question belongs to, decided by its text alone: so no seed, count or order can put it in both."""
    digest = hashlib.sha256(prompt.encode()).digest()
    return "eval" if int.from_bytes(digest[:8], "big") % 5 < EVAL_FIFTHS else "train"


def distinct_questions(generate: Callable[[Draws], Question], split: Split, seed: int) -> Iterator[Question]:
    """Different questions of one split in the order they are drawn, until `PATIENCE` draws bring nothing new."""
    draws = Draws(f"{split}:{seed}")
    seen: set[str] = set()
    fruitless = 0
    while fruitless < PATIENCE:
        question = generate(draws)
        if question.prompt in seen or split_of(question.prompt) != split:
            fruitless += 1
            continue
        fruitless = 0
        seen.add(question.prompt)
        yield question
