"""Any trainer of TRL, run from a recipe."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Method, hookimpl


@hookimpl
def ft_methods() -> Iterator[Method]:
    yield Method(
        name="trl",
        build="finetooth_trl.method:build",
        summary="a trainer of TRL computes the loss; rows, updates, tracking and artifact are the recipe's",
        needs=frozenset({"module"}),
        headline=("reward", "rewards/accuracies", "mean_token_accuracy"),
        example={"trainer": "sft"},
        learns_from="what the trainer takes",
        rows="as for the method that is like it",
    )
