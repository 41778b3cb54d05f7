"""The evaluator: asks every held-out question and compares the greedy answer with the expected one."""

from __future__ import annotations

from collections import Counter
from typing import Any

from finetooth_hooks import (
    Context,
    DataError,
    DataReport,
    Engine,
    Evaluation,
    Pick,
    RecipeError,
    Sample,
)
from finetooth_hooks.bases import EvaluatorBase
from finetooth_hooks.protocols import Reward
from pydantic import Field

from finetooth_exactmatch.normalise import AnswerOptions
from finetooth_exactmatch.questions import Question, ask, read_questions
from finetooth_exactmatch.reward import ExactMatch

OWN = "exact_match"
BASELINE = "majority answer"


class ExactMatchOptions(AnswerOptions):
    """Options of the evaluator `exact_match`."""

    reward: Pick = OWN
    """Compares the answers: `exact_match` with the options given here, or any other reward (its own mapping holds its
    options; a `label` there names the metric). A reward gets the expected text in the column `answer`; for prompts
    without an answer it gets all columns."""
    column: str = Field(default="answer", min_length=1)
    """For rows that are a prompt without an answer: the column with the expected answer."""
    max_tokens: int = Field(default=128, ge=1)
    """Longest answer, in tokens."""
    samples: int = Field(default=3, ge=0)
    """Number of questions to show with their answers, spread over the rows and the same each time."""
    rows: int | None = Field(default=None, ge=1)
    """Ask only this many rows, the first ones. Left out, all."""


class ExactMatchEvaluator(EvaluatorBase):
    """`protocols.Evaluator`: mean score of greedy answers, and that of the majority answer.

    The second metric, `unfinished`, is the share of answers cut off at `max_tokens`.
    """

    def __init__(self, options: ExactMatchOptions, context: Context) -> None:
        self._options, self._context = options, context
        own = options.reward == OWN
        if not own and options.pattern is not None:
            raise RecipeError(
                "evaluate.evaluators",
                "exact_match has a pattern and another reward",
                action="give the reward the options it needs, in its own mapping",
            )
        self._answers = AnswerOptions.model_validate(
            options.model_dump(include=set(AnswerOptions.model_fields)) if own else {}
        )
        self._reward: Reward = (
            ExactMatch(self._answers)
            if own
            else context.build("reward", _unlabelled(options.reward), setting="evaluate.evaluators.exact_match.reward")
        )
        self._metric = OWN if own else _name(options.reward)
        self._judges = own
        self._questions: list[Question] = []
        self._majority: float | None = None

    @property
    def metrics(self) -> frozenset[str]:
        """See `protocols.Evaluator.metrics`."""
        return frozenset({self._metric, "unfinished"})

    def prepare(self) -> DataReport:
        """Read the questions and score the majority answer.

        Raises:
            RecipeError: the recipe gives no held-out rows.
            DataError: no row asks anything.
        """
        self._questions, report = read_questions(
            self._context,
            self._answers if self._judges else None,
            self._options.max_tokens,
            self._options.rows,
            self._options.column,
        )
        if any(question.expected for question in self._questions):
            self._majority = _mean(self._score([self._most_frequent()] * len(self._questions)))
        return report

    def evaluate(self, engine: Engine, step: int) -> Evaluation:
        """Ask every question greedily.

        Raises:
            DataError: the reward scores no answer.
        """
        if not self._questions:
            self.prepare()
        answers, unfinished, settings = ask(engine, self._context, self._questions, self._options.max_tokens)
        scores = self._score(answers)
        return Evaluation(
            name="exact_match",
            step=step,
            metrics={self._metric: _mean(scores), "unfinished": unfinished},
            baselines={} if self._majority is None else {BASELINE: self._majority},
            samples=self._samples(answers, scores),
            rows=sum(score is not None for score in scores),
            settings=settings,
        )

    def _score(self, answers: list[str]) -> list[float | None]:
        scores = self._reward(
            [question.text for question in self._questions],
            answers,
            self._columns(),
        )
        if all(score is None for score in scores):
            raise DataError(
                "evaluate.evaluators", f"reward {self._metric} scores no row", action="check the reward's options"
            )
        return scores

    def _columns(self) -> dict[str, list[Any]]:
        """What a reward gets with questions and answers: every column that a row has, None where another has not."""
        expected = [question.expected for question in self._questions]
        if self._judges:
            return {"answer": expected}
        names = dict.fromkeys(name for question in self._questions for name in question.columns)
        columns = {name: [question.columns.get(name) for question in self._questions] for name in names}
        known = columns.get("answer", [None] * len(expected))
        return {
            **columns,
            "answer": [other if own is None else own for own, other in zip(known, expected, strict=True)],
        }

    def _most_frequent(self) -> str:
        """The expected answer that is most often right, as it stands in the first row that has it."""
        written: dict[str, str] = {}
        counts: Counter[str] = Counter()
        for question in (asking for asking in self._questions if asking.expected):
            answer = self._answers.read(question.expected) or ""
            written.setdefault(answer, question.expected)
            counts[answer] += 1
        return written[counts.most_common(1)[0][0]]

    def _samples(self, answers: list[str], scores: list[float | None]) -> tuple[Sample, ...]:
        count = min(self._options.samples, len(answers))
        chosen = [i * len(answers) // count for i in range(count)]
        return tuple(
            Sample(
                id=self._questions[i].id,
                prompt=self._questions[i].text,
                expected=self._questions[i].expected,
                answer=answers[i],
                score=scores[i] or 0.0,
            )
            for i in chosen
        )


def _mean(scores: list[float | None]) -> float:
    """Mean of the scored rows."""
    known = [score for score in scores if score is not None]
    return sum(known) / len(known)


def _name(pick: Pick) -> str:
    name = pick if isinstance(pick, str) else str(pick.get("label", pick.get("name", "reward")))
    return name.rsplit(":", 1)[-1]


def _unlabelled(pick: Pick) -> Pick:
    return pick if isinstance(pick, str) else {key: value for key, value in pick.items() if key != "label"}
