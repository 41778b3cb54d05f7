"""The model as its own judge, which gives points to an answer.

It reads the question, the answer and the rubric. The score is the expected number of points under its distribution over
the digits after "Score: " (Liu et al., 2023, arXiv:2303.16634, eq. 1). Without sampling, every judgement is a valid
number, and ties are rare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from finetooth_hooks import Context, Datum, Engine, Message, RecipeError, Rollout, Task, TokenChunk
from finetooth_rollouts.prompts import Prompts, filled
from finetooth_rollouts.scoring import prompt_text
from numpy.typing import NDArray

POINTS = 5
RUBRIC = (
    "Judge the answer to the question below. Give one point for each of these that is true: it is about what was "
    "asked; it covers most of what was asked; it answers all of it; it is clear and well made; it could not be much "
    "better.\n\nQuestion: {prompt}\n\nAnswer: {answer}\n\nGive the sum of the points, from 0 to 5."
)
"""The judge's prompt; after Yuan et al., 2024, arXiv:2401.10020, figure 2, in our own words."""
BEGINNING = "Score: "


class OwnJudge:
    """Judges with the same engine that answers.

    Args:
        rubric: with `{prompt}` and `{answer}`.

    Raises:
        RecipeError: the tokenizer has no token for a single digit.
    """

    def __init__(self, context: Context, rubric: str) -> None:
        self._context, self._rubric = context, rubric
        self._digits = [context.tokenizer.encode(str(points)) for points in range(POINTS + 1)]
        if any(len(digit) != 1 for digit in self._digits):
            problem = "the model's tokenizer has no token for each digit, so the model cannot give points"
            raise RecipeError("method.rewards", problem, action="set method.rewards to rewards that judge the answers")

    def check_room(self, prompts: Prompts, answer: int) -> None:
        """Checks that the model can read the judge's prompt for each task.

        Args:
            answer: largest number of tokens of an answer.

        Raises:
            DataError: the prompt is too long for the model; names the row.
        """
        shown = [(id_, tuple(self._tokens(task, ""))) for id_, task in prompts.tasks.items()]
        action = "shorten method.rubric, lower method.max_completion_length, or remove the row"
        replace(prompts, tokens=shown).check_room(self._context, answer, of="the judge's prompt", action=action)

    def scored(self, engine: Engine, rollouts: Sequence[Rollout], tasks: Mapping[str, Task]) -> list[Rollout]:
        """The rollouts with points, 0 to 5, as their reward. A rollout is left out if its text, tokenised again, is too
        long for the model.

        Args:
            tasks: by the rollouts' ids.
        """
        most = self._context.facts.max_positions
        pairs = [(rollout, self._datum(tasks[rollout.id], rollout)) for rollout in rollouts]
        fits = [(rollout, datum) for rollout, datum in pairs if not most or len(datum) <= most]
        if left_out := len(pairs) - len(fits):
            self._context.note(f"the judge left out {left_out} answers whose prompt is longer than {most} tokens")
        data = [datum for _, datum in fits]
        outputs = engine.forward(data, returns=("logprobs",), train=False).outputs if data else ()
        points = [_expected(of["logprobs"][-1].astype(np.float64)) for of in outputs]
        return [replace(of, rewards={"self": p}, reward=p) for (of, _), p in zip(fits, points, strict=True)]

    def _datum(self, task: Task, rollout: Rollout) -> Datum:
        """The judge's prompt, with the digits as targets of its last position."""
        tokens = self._tokens(task, rollout.text)
        targets = np.repeat(np.transpose(self._digits), len(tokens), axis=0)
        mask = np.arange(1, len(tokens) + 1) == len(tokens)
        return Datum((TokenChunk(np.array(tokens, dtype=np.int64)),), targets, mask=mask, id=rollout.id)

    def _tokens(self, task: Task, answer: str) -> list[int]:
        asked = Message("user", filled(self._rubric, prompt=prompt_text(task), answer=answer))
        return [*self._context.renderer.prompt((asked,)), *self._context.tokenizer.encode(BEGINNING)]


def _expected(logprobs: NDArray[np.float64]) -> float:
    """The expected points from log-probabilities (POINTS + 1,), whose probabilities need not sum to 1."""
    share = np.exp(logprobs - logprobs.max())
    return float(share @ np.arange(POINTS + 1) / share.sum())
