"""Exact match of greedy answers, as an evaluator and as a reward."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Evaluator, Reward, hookimpl


@hookimpl
def ft_evaluators() -> Iterable[Evaluator]:
    """The evaluators `exact_match` and `some_answers`."""
    yield Evaluator(
        name="exact_match",
        build="finetooth_exactmatch.evaluator:ExactMatchEvaluator",
        summary="share of held-out questions answered exactly",
        needs=frozenset({"generate"}),
    )
    yield Evaluator(
        name="some_answers",
        build="finetooth_exactmatch.answers:Answers",
        summary="a few held-out questions with the model's answers, to read; no score",
        needs=frozenset({"generate"}),
    )


@hookimpl
def ft_rewards() -> Iterable[Reward]:
    """The reward `exact_match`."""
    yield Reward(
        name="exact_match",
        build="finetooth_exactmatch.reward:build",
        summary="1 for the expected answer, else 0",
    )
