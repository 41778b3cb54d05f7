"""Proximal policy optimisation with a critic."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Method, ScalarHead, hookimpl


@hookimpl
def ft_methods() -> Iterator[Method]:
    yield Method(
        name="ppo",
        build="finetooth_ppo.method:PpoMethod",
        summary="learn from rewards with a critic, whose predictions give each token its advantage",
        head=ScalarHead(bias=True, exported_as="none"),
        headline=("reward",),
        evaluators=("exact_match",),
        example={
            "rewards": [{"name": "exact_match", "column": "answer"}],
            "max_completion_length": 4,
            "keep_rollouts": False,
        },
    )
