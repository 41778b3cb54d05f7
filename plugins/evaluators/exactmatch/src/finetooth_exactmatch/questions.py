"""Held-out examples as questions with expected answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from finetooth_hooks import (
    Context,
    Conversation,
    DataError,
    DataReport,
    Engine,
    Example,
    PromptCompletion,
)
from finetooth_hooks.data.examples import Task
from finetooth_hooks.data.preparation import PreparedRows, Rendering
from finetooth_rendering import asking

from finetooth_exactmatch.normalise import AnswerOptions
from finetooth_exactmatch.prompts import asks

NO_QUESTION = "a plain text asks nothing"
NO_ANSWER = "does not end with an assistant's message"
NO_EXPECTED = "has no expected answer in the column that exact_match reads"
NO_MATCH = "expected answer has no match of pattern"
TOO_LONG = "question and max_tokens exceed the model's positions"
SETTINGS = {
    NO_EXPECTED: "column",
    NO_MATCH: "pattern",
    TOO_LONG: "max_tokens",
}
"""The option of the evaluator that decides about rows left out."""


@dataclass(frozen=True)
class Question:
    """One held-out question.

    Attributes:
        id: of its row.
        text: the question, as people read it: the last message before the answer, or the raw prompt.
        tokens: the prompt.
        expected: the right answer as it stands in the row; empty where there is none, for a reward of its own judges.
        chat: the answer is an assistant's message, not raw text.
        columns: all else that the row has, of a prompt without an answer.
    """

    id: str
    text: str
    tokens: tuple[int, ...]
    expected: str
    chat: bool
    columns: Mapping[str, Any] = field(default_factory=dict)


def read_questions(
    context: Context,
    answers: AnswerOptions | None,
    max_tokens: int,
    rows: int | None,
    column: str,
    *,
    evaluator: str = "exact_match",
) -> tuple[list[Question], DataReport]:
    """Questions of the held-out rows and the report on these; many are rendered by several processes and kept.

    Args:
        answers: how the expected answer is read; None if a reward of its own judges.
        max_tokens: room an answer needs.
        rows: use only the first rows.
        column: holds the expected answer of a prompt without one.
        evaluator: who asks, for messages.

    Raises:
        RecipeError: the recipe gives no held-out rows.
        DataError: a row is broken, or none asks anything.
    """
    questions: list[Question] = []
    dropped: dict[str, list[str]] = defaultdict(list)
    examples = context.examples("eval", first=rows)
    prompts = _prompts(context.prepare("eval", Rendering("finetooth_exactmatch.prompts:build"), None, first=rows).data)
    prompt = next(prompts, None)
    count = 0
    for id_, example in examples.rows:
        count += 1
        tokens: tuple[int, ...] = ()
        if prompt is not None and prompt[0] == id_:  # rows without tokens are left out, the others are in order
            tokens, prompt = prompt[1], next(prompts, None)
        reading = _question(id_, example, tokens, column)
        if isinstance(example, Task) and answers is not None and example.columns.get(column) is None:
            reading = NO_EXPECTED
        if isinstance(reading, Question) and answers is not None and answers.read(reading.expected) is None:
            reading = NO_MATCH
        if isinstance(reading, Question) and len(reading.tokens) + max_tokens > context.facts.max_positions:
            reading = TOO_LONG
        if isinstance(reading, Question):
            questions.append(reading)
        else:
            dropped[reading].append(id_)
    if not questions:
        reasons = "; ".join(f"{len(ids)} {reason}" for reason, ids in dropped.items()) or "it has no rows"
        raise DataError(
            f"data.{examples.split}",
            f"evaluator {evaluator} can use no row: {reasons}",
            action=f"change data.eval or leave {evaluator} out of evaluate.evaluators",
        )
    notes = (f"evaluator {evaluator} asks the first {rows} rows",) if count == rows else ()
    report = DataReport(
        split=examples.split,
        rows=count,
        used=len(questions),
        dropped={reason: len(ids) for reason, ids in dropped.items()},
        dropped_ids={reason: tuple(ids[:5]) for reason, ids in dropped.items()},
        settings={reason: f"{option} of {evaluator}" for reason, option in SETTINGS.items() if reason in dropped},
        tokens=sum(len(question.tokens) for question in questions),
        longest=max(len(question.tokens) for question in questions),
        notes=notes,
    )
    return questions, report


def ask(
    engine: Engine, context: Context, questions: Sequence[Question], max_tokens: int
) -> tuple[list[str], float, dict[str, Any]]:
    """Greedy answers as people read them, the share of them that was cut off, and what they depend on."""
    chat = [question.chat for question in questions]
    answers, unfinished = asking.ask(engine, context, [question.tokens for question in questions], max_tokens, chat)
    return answers, unfinished, asking.settings(context, max_tokens, chat=any(chat))


def _prompts(rows: PreparedRows) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Row ids with all their tokens."""
    begin = 0
    for end in accumulate(rows.lengths.tolist()):
        yield rows.place(begin)[0], tuple(rows.span(begin, end).tolist())
        begin = end


def _question(id_: str, example: Example, tokens: tuple[int, ...], column: str) -> Question | str:
    """The example as a question, or why it is none."""
    if isinstance(example, Task):
        if not tokens:
            return NO_QUESTION
        chat = not isinstance(example.prompt, str)
        text = example.prompt if isinstance(example.prompt, str) else example.prompt[-1].content
        expected = example.columns.get(column)
        return Question(id_, text, tokens, "" if expected is None else str(expected), chat, example.columns)
    if isinstance(example, PromptCompletion):
        return Question(id_, example.prompt, tokens, example.completion, chat=False) if tokens else NO_QUESTION
    if not isinstance(example, Conversation):
        return NO_QUESTION
    if not asks(example):
        return NO_ANSWER
    *before, answer = example.messages
    return Question(id_, before[-1].content, tokens, answer.content, chat=True)
