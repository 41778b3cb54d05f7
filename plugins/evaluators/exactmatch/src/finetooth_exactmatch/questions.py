"""Held-out examples as questions with expected answers."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from finetooth_hooks import Context, Conversation, DataError, DataReport, Example, PromptCompletion
from finetooth_hooks.protocols import Examples
from finetooth_hooks.rendering import text_opening

from finetooth_exactmatch.normalise import AnswerOptions

NO_QUESTION = "a plain text asks nothing"
NO_ANSWER = "does not end with an assistant's message"
NO_MATCH = "expected answer has no match of pattern"
TOO_LONG = "question and max_tokens exceed the model's positions"


@dataclass(frozen=True)
class Question:
    """One held-out question.

    Attributes:
        id: of its row.
        text: what is asked, as people read it: the last message before the answer, or the raw prompt.
        tokens: the prompt.
        expected: the right answer as it stands in the row.
        chat: the answer is an assistant's message, not raw text.
    """

    id: str
    text: str
    tokens: tuple[int, ...]
    expected: str
    chat: bool


def read_questions(
    examples: Examples, context: Context, answers: AnswerOptions | None, max_tokens: int, rows: int | None
) -> tuple[list[Question], DataReport]:
    """Questions of a split and what became of its rows.

    Args:
        answers: how the expected answer is read; None if a reward of its own judges.
        max_tokens: room an answer needs.
        rows: use only the first rows.

    Raises:
        DataError: no row asks anything.
    """
    questions: list[Question] = []
    dropped: dict[str, list[str]] = defaultdict(list)
    chosen = examples.rows if rows is None else examples.rows[:rows]
    for id_, example in chosen:
        found = _question(id_, example, context)
        if isinstance(found, Question) and answers is not None and answers.read(found.expected) is None:
            found = NO_MATCH
        if isinstance(found, Question) and len(found.tokens) + max_tokens > context.facts.max_positions:
            found = TOO_LONG
        if isinstance(found, Question):
            questions.append(found)
        else:
            dropped[found].append(id_)
    if not questions:
        reasons = "; ".join(f"{len(ids)} {reason}" for reason, ids in dropped.items()) or "it has no rows"
        raise DataError(
            f"data.{examples.split}",
            f"evaluator exact_match can use no row: {reasons}",
            action="change data.eval or leave exact_match out of evaluate.evaluators",
        )
    notes = (f"evaluator exact_match asks the first {rows} rows",) if len(chosen) < len(examples.rows) else ()
    report = DataReport(
        split=examples.split,
        rows=len(chosen),
        used=len(questions),
        dropped={reason: len(ids) for reason, ids in dropped.items()},
        dropped_ids={reason: tuple(ids[:5]) for reason, ids in dropped.items()},
        tokens=sum(len(question.tokens) for question in questions),
        longest=max(len(question.tokens) for question in questions),
        notes=notes,
    )
    return questions, report


def _question(id_: str, example: Example, context: Context) -> Question | str:
    """The example as a question, or why it is none."""
    if isinstance(example, PromptCompletion):
        tokens = (*text_opening(context.tokenizer), *context.tokenizer.encode(example.prompt))
        return Question(id_, example.prompt, tokens, example.completion, chat=False) if tokens else NO_QUESTION
    if not isinstance(example, Conversation):
        return NO_QUESTION
    *asked, answer = example.messages
    if not asked or answer.role != "assistant" or not answer.content.strip():
        return NO_ANSWER
    try:
        tokens = context.renderer.prompt(asked, example.tools)
    except DataError as error:
        raise DataError(id_, error.problem, action=error.action) from error
    return Question(id_, asked[-1].content, tokens, answer.content, chat=True)
