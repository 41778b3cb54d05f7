"""Reward models: learn which answer is better, or how good one is."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Evaluator, Loss, Method, ScalarHead, hookimpl


@hookimpl
def ft_methods() -> Iterator[Method]:
    yield Method(
        name="rm",
        build="finetooth_reward.method:Rm",
        summary="train a reward model on pairs of answers, or on answers with a number",
        learns_from="pairs of answers, to train what scores answers later",
        rows="5,000 rows and more",
        head=ScalarHead(),
        elsewhere={"reward": {}, "reward_modeling": {}, "reward_model": {}},
        evaluators=("reward",),
        formats=("labelled_text",),
        headline=("rewards/accuracies",),  # with labels the loss is already the error
    )


@hookimpl
def ft_losses() -> Iterator[Loss]:
    yield Loss(
        name="bradley_terry",
        build="finetooth_reward.losses:build_bradley_terry",
        summary="raises the score of a pair's chosen answer above that of the rejected one",
        needs=frozenset({"scores"}),
        together="group",
        scalars=frozenset({"margin"}),
    )
    yield Loss(
        name="score_mse",
        build="finetooth_reward.losses:build_score_mse",
        summary="squared error between a text's score and its label",
        needs=frozenset({"scores"}),
        scalars=frozenset({"label"}),
    )


@hookimpl
def ft_evaluators() -> Iterator[Evaluator]:
    yield Evaluator(
        name="reward",
        build="finetooth_reward.evaluator:RewardEvaluator",
        summary="how often held-out pairs are ranked correctly, or how far scores are from their labels",
        needs=frozenset({"head"}),
    )
