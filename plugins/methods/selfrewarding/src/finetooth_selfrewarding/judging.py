"""The model as its own judge: how many points it would give an answer.

It is shown the question, the answer and what points are for, and its distribution over the digits that may follow
"Score: " is read: the score is the expected number of points (Liu et al., 2023, arXiv:2303.16634, eq. 1). Nothing is
sampled, so every answer of the judge can be read, and two answers are seldom judged alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from finetooth_hooks.context import Context
from finetooth_hooks.data.datum import Datum, TokenChunk
from finetooth_hooks.data.examples import Message
from finetooth_hooks.engine import Engine
from finetooth_hooks.errors import RecipeError
from finetooth_hooks.rollouts import Rollout

POINTS = 5
RUBRIC = (
    "Judge the answer to the question below. Give one point for each of these that is true: it is about what was "
    "asked; it covers most of what was asked; it answers all of it; it is clear and well made; it could not be much "
    "better.\n\nQuestion: {prompt}\n\nAnswer: {answer}\n\nGive the sum of the points, from 0 to 5."
)
"""What the judge is asked; after Yuan et al., 2024, arXiv:2401.10020, figure 2, in words of our own."""
BEGINNING = "Score: "


class OwnJudge:
    """Judges with the engine that answers.

    Args:
        rubric: with `{prompt}` and `{answer}`.

    Raises:
        RecipeError: the tokenizer has no token for a digit alone, or the rubric does not show question and answer.
    """

    def __init__(self, context: Context, rubric: str) -> None:
        for place in ("{prompt}", "{answer}"):
            if place not in rubric:
                raise RecipeError("method.rubric", f"it does not say {place}", action="put it where it is to stand")
        self._context, self._rubric = context, rubric
        tokens = [context.tokenizer.encode(str(points)) for points in range(POINTS + 1)]
        if any(len(of) != 1 for of in tokens):
            raise RecipeError(
                "method.rewards",
                "the model's tokenizer has no token for each digit, so it cannot be asked for points",
                action="name rewards that judge",
            )
        self._digits = [of[0] for of in tokens]

    def scores(self, engine: Engine, prompts: Sequence[str], rollouts: Sequence[Rollout]) -> list[float]:
        """Points of each answer, 0 to 5.

        Args:
            prompts: what was asked, as text.
        """
        data = [self._datum(prompt, rollout) for prompt, rollout in zip(prompts, rollouts, strict=True)]
        outputs = engine.forward(data, returns=("logprobs",), train=False).outputs
        means = []
        for of in outputs:
            logprobs = np.asarray(of["logprobs"][-1], dtype=np.float64)
            share = np.exp(logprobs - logprobs.max())
            means.append(float(share @ np.arange(POINTS + 1) / share.sum()))
        return means

    def _datum(self, prompt: str, rollout: Rollout) -> Datum:
        """What the judge reads, with the digits as targets of its last position."""
        shown = {"{prompt}": prompt, "{answer}": rollout.text}
        text = re.sub(r"\{prompt\}|\{answer\}", lambda place: shown[place[0]], self._rubric)  # marks in them are text
        tokens = [
            *self._context.renderer.prompt((Message("user", text),)), *self._context.tokenizer.encode(BEGINNING)
        ]  # fmt: skip
        targets = np.zeros((len(tokens), POINTS + 1), dtype=np.int64)
        targets[-1] = self._digits
        mask = np.zeros(len(tokens), dtype=np.bool_)
        mask[-1] = True
        return Datum((TokenChunk(np.array(tokens, dtype=np.int64)),), targets, mask=mask, id=rollout.id)
