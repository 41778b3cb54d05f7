"""The evaluator `some_answers`: a few held-out questions, answered greedily, for people to read."""

from __future__ import annotations

import math

from finetooth_hooks import Context, DataReport, Engine, Evaluation, Options, Sample
from finetooth_hooks.bases import EvaluatorBase
from pydantic import Field

from finetooth_exactmatch.questions import Question, ask, read_questions

NAME = "some_answers"


class AnswersOptions(Options):
    """Options of the evaluator `some_answers`."""

    rows: int = Field(default=3, ge=1)
    """Number of questions to ask: the first held-out rows."""
    max_tokens: int = Field(default=64, ge=1)
    """Longest answer, in tokens."""


class Answers(EvaluatorBase):
    """`protocols.Evaluator`: keeps answers with the expected ones. Metric: the share cut off at `max_tokens`."""

    metrics = frozenset({"unfinished"})

    def __init__(self, options: AnswersOptions, context: Context) -> None:
        self._options, self._context = options, context
        self._questions: list[Question] = []

    def prepare(self) -> DataReport:
        """Read the questions.

        Raises:
            RecipeError: the recipe gives no held-out rows.
            DataError: no row asks anything.
        """
        options = self._options
        self._questions, report = read_questions(
            self._context, None, options.max_tokens, options.rows, "answer", evaluator=NAME
        )
        return report

    def evaluate(self, engine: Engine, step: int) -> Evaluation:
        """Ask them greedily."""
        if not self._questions:
            self.prepare()
        answers, unfinished, settings = ask(engine, self._context, self._questions, self._options.max_tokens)
        return Evaluation(
            name=NAME,
            step=step,
            metrics={"unfinished": unfinished},
            samples=tuple(
                Sample(question.id, question.text, question.expected, answer, math.nan)
                for question, answer in zip(self._questions, answers, strict=True)
            ),
            rows=len(answers),
            higher_is_better=False,
            settings=settings,
        )
