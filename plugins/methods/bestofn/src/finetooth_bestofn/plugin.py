"""Training on the best answers that the model samples."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Method, hookimpl


@hookimpl
def ft_methods() -> Iterator[Method]:
    yield Method(
        name="best_of_n",
        build="finetooth_bestofn.method:BestOfN",
        summary="sample answers to each prompt, and train on the best ones by cross entropy",
        headline=("reward",),
        evaluators=("exact_match",),
        example={
            "rewards": [{"name": "exact_match", "column": "answer"}],
            "num_generations": 2,
            "max_completion_length": 4,
            "keep_equal": True,
            "keep_rollouts": False,
        },
        elsewhere={
            "rejection_sampling": {},
            "raft": {},
            "expert_iteration": {"threshold": 0.0},
            "rft": {"threshold": 0.0},
        },
    )
