"""Perplexity of held-out conversations: exp of the mean negative log-likelihood of a target that counts."""

from __future__ import annotations

import math

from finetooth_hooks import (
    Context,
    Conversation,
    DataError,
    DataReport,
    Engine,
    Evaluation,
    Example,
    NoOptions,
    Rendered,
)
from finetooth_hooks.data.preparation import Preparation, prepare


def build(options: NoOptions, context: Context) -> Perplexity:
    """Called once a run."""
    return Perplexity(context)


class Perplexity:
    """Scores the examples of `data.eval`; lower is better."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._held_out: Preparation | None = None

    def prepare(self) -> DataReport:
        """Read and tokenise the held-out examples, once."""
        self._held_out = prepare(self._context.examples("eval"), self._render, self._context.train)
        return self._held_out.report

    def evaluate(self, engine: Engine, step: int) -> Evaluation:
        """Score all of them."""
        if self._held_out is None:
            self.prepare()
        assert self._held_out is not None
        data = self._held_out.data
        nll = -sum(float(values.sum()) for values in engine.logprobs(data))
        targets = sum(int(datum.mask.sum()) for datum in data)
        return Evaluation(
            name="acme_evaluator",
            step=step,
            metrics={"perplexity": math.exp(nll / targets)},
            rows=len(data),
            higher_is_better=False,
        )

    def _render(self, example: Example) -> Rendered:
        if not isinstance(example, Conversation):
            problem = "the evaluator acme_evaluator scores conversations only"
            raise DataError("data.eval", problem, action="remove it from evaluate.evaluators")
        return self._context.renderer.render(example)
