"""Evaluator `loss`: mean negative log-likelihood and perplexity of the held-out rows."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Evaluator, hookimpl


@hookimpl
def ft_evaluators() -> Iterable[Evaluator]:
    """The evaluator `loss`."""
    yield Evaluator(
        name="loss",
        build="finetooth_evalloss.evaluator:LossEvaluator",
        summary="held-out loss and perplexity",
        default=True,
    )
