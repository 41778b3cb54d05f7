"""A model that judges its own answers and learns its preferences."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Method, hookimpl


@hookimpl
def ft_methods() -> Iterator[Method]:
    yield Method(
        name="self_rewarding",
        build="finetooth_selfrewarding.method:SelfRewarding",
        summary="the model judges its own answers and prefers the better ones, round after round",
        needs=frozenset({"roles", "generate"}),
        headline=("rewards/accuracies", "judge/mean"),
        evaluators=("exact_match",),
        example={
            "rewards": [{"name": "exact_match", "column": "answer"}],
            "num_generations": 2,
            "max_completion_length": 4,
            "keep_equal": True,
        },
        elsewhere={"rlaif": {}, "online_dpo": {}, "iterative_dpo": {}},
    )
    yield Method(
        name="spin",
        build="finetooth_selfrewarding.spin:Spin",
        summary="prefer the rows' answers to the policy's own, round after round",
        needs=frozenset({"roles", "generate"}),
        headline=("rewards/accuracies", "rewards/margins"),
        example={"max_completion_length": 4},
        learns_from="rows with answers, after sft on them: prompts with completions, or conversations",
        elsewhere={"self_play": {}},
    )
