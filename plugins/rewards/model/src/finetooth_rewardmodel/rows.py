"""What the rows of a file ask a reward model: to score one text, to compare two, or to choose among several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from finetooth_hooks import DataError, Message
from finetooth_hooks.data.examples import (
    Conversation,
    Example,
    Labelled,
    Pair,
    PromptCompletion,
    Segments,
    Side,
    Stepwise,
    Task,
)
from finetooth_hooks.data.examples import Text as Document

from finetooth_rewardmodel.scorer import Text

Kind = Literal["pair", "labelled", "steps", "choice", "text"]
ANSWERS = ("responses", "completions", "answers", "candidates")
"""Columns with several answers to one prompt."""


@dataclass(frozen=True)
class Question:
    """A row.

    Attributes:
        texts: to be scored: chosen and rejected, all answers of a choice, or one.
        labels: of the text (`labelled`) or of its steps; NaN for a step that has none.
    """

    id: str
    kind: Kind
    texts: tuple[Text, ...]
    labels: tuple[float, ...] = ()


def question(id_: str, example: Example) -> Question:
    """What a row asks.

    Raises:
        DataError: it has no answer.
    """

    def texts(*answers: Side, prompt: Side, tools: Sequence[Mapping[str, Any]] = ()) -> tuple[Text, ...]:
        return tuple(Text(prompt, answer, tools, id_) for answer in answers)

    match example:
        case Pair():
            return Question(
                id_, "pair", texts(example.chosen, example.rejected, prompt=example.prompt, tools=example.tools)
            )
        case Labelled():
            scored = texts(example.completion, prompt=example.prompt, tools=example.tools)
            return Question(id_, "labelled", scored, (float(example.label),))
        case Stepwise():
            scored = (Text(example.prompt, "", id=id_, steps=tuple(example.steps)),)
            labels = tuple(math.nan if label is None else float(label) for label in example.labels)
            return Question(id_, "steps", scored, labels)
        case Conversation():
            return Question(id_, "text", texts(example.messages, prompt=(), tools=example.tools))
        case PromptCompletion():
            return Question(id_, "text", texts(example.completion, prompt=example.prompt))
        case Document():
            return Question(id_, "text", texts(example.text, prompt=""))
        case Segments():
            return Question(id_, "text", texts("".join(piece for piece, _ in example.pieces), prompt=""))
        case Task():
            return _choice(id_, example)
    raise DataError(id_, "rows like this have no answer", action="give rows with a prompt and an answer")


def _choice(id_: str, task: Task) -> Question:
    """A prompt with several answers."""
    column = next((name for name in ANSWERS if isinstance(task.columns.get(name), list | tuple)), None)
    if column is None:
        raise DataError(id_, "it has a prompt and no answer", action=f"add one, or several in a list {ANSWERS[0]}")
    answers = task.columns[column]
    if not answers or not all(isinstance(answer, str) for answer in answers):
        raise DataError(id_, f"{column} is not a list of texts", action="write it as one, or remove the row")
    as_text = isinstance(task.prompt, str)
    sides = [answer if as_text else (Message("assistant", answer),) for answer in answers]
    return Question(id_, "choice", tuple(Text(task.prompt, side, task.tools, id_) for side in sides))
