"""The evaluator `acme_evaluator`."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Evaluator, hookimpl


@hookimpl
def ft_evaluators() -> Iterator[Evaluator]:
    yield Evaluator(
        name="acme_evaluator",
        build="acme_evaluator.evaluator:build",
        summary="perplexity of the assistant's held-out messages",
    )
