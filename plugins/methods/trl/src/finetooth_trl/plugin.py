"""Any trainer of TRL, run from a recipe."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Method, hookimpl

WITHOUT_A_MODEL = "TRL's trainers take the torch model itself, which the kit's engine has not"


@hookimpl
def ft_methods() -> Iterator[Method]:
    yield Method(
        name="trl",
        build="finetooth_trl.method:Trl",
        summary="a TRL trainer computes the loss; the recipe sets rows, updates, tracking and artifact",
        needs=frozenset({"module"}),
        headline=("reward", "rewards/accuracies", "mean_token_accuracy"),
        example={"trainer": "sft"},
        learns_from="rows for a trainer of the library TRL that no method here is like, named by method.trainer",
        rows="as that trainer's own documentation says",
        expected_failures={
            "each_item_is_one_step": WITHOUT_A_MODEL,
            "restored_method_goes_on": WITHOUT_A_MODEL,
            "state_after_a_failed_step_is_behind_its_data": WITHOUT_A_MODEL,
        },
    )
