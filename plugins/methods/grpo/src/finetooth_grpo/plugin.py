"""Methods that learn from their own samples: GRPO and its relatives, RLOO, REINFORCE++."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from finetooth_hooks import Command, Method, hookimpl

_EXAMPLE = {
    "rewards": [{"name": "exact_match", "column": "answer"}],
    "num_generations": 2,
    "max_completion_length": 4,
    "skip_zero_advantage_batches": False,
    "keep_rollouts": False,
}
_ELSEWHERE: dict[str, dict[str, dict[str, Any]]] = {
    "grpo": {
        "gspo": {"importance_sampling_level": "sequence"},
        **{name: {"loss_type": name} for name in ("bnpo", "dr_grpo", "cispo", "sapo", "vespo")},
        "dapo": {"loss_type": "dapo", "dynamic_sampling": True, "epsilon_high": 0.28},
        "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
        "gdpo": {"multi_objective_aggregation": "normalize_then_sum"},
    },
    "reinforce_plus_plus": {"reinforce++": {}},
}


@hookimpl
def ft_methods() -> Iterator[Method]:
    for name, function, summary in (
        ("grpo", "grpo", "sample several answers to each prompt, and compare their rewards"),
        ("rloo", "rloo", "sample several answers, and compare each reward with the mean of the others"),
        ("reinforce_plus_plus", "reinforce_plus_plus", "sample answers, and compare each reward with all of its batch"),
    ):
        yield Method(
            name=name,
            build=f"finetooth_grpo.methods:{function}",
            summary=summary,
            headline=("reward",),
            evaluators=("exact_match",),
            example=_EXAMPLE,
            elsewhere=_ELSEWHERE.get(name, {}),
            learns_from="prompts and a function that scores answers: a checker, tests, a judge"
            if name == "grpo"
            else "",
            rows="100 to 10,000 prompts, 8 or more answers to each (Shao et al., 2024, 2402.03300)"
            if name == "grpo"
            else "",
        )


@hookimpl
def ft_commands() -> Iterator[Command]:
    yield Command(
        name="rollouts",
        build="finetooth_grpo.command:command",
        summary="show what a run learned from: answers, rewards, advantages",
        section="Use",
    )
