"""Losses of reinforcement learning, from advantages and the sampler's log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Loss, hookimpl

_LOSSES = {
    "importance_sampling": "advantage times the ratio of the policy's probability of a token to the sampler's",
    "ppo": "PPO: ratio times advantage, with or without a clipped ratio, whichever is lower",
    "cispo": "log-probability times advantage times a clipped ratio, through which no gradient flows",
    "dro": "log-probability times advantage, minus a squared penalty that keeps the policy near the sampler",
}

_EXPECTED = {"cispo": {"gradient_is_the_slope": "its ratio is held constant, on purpose"}}


@hookimpl
def ft_losses() -> Iterator[Loss]:
    for name, summary in _LOSSES.items():
        yield Loss(
            name=name,
            build=f"finetooth_policygradient.loss:build_{name}",
            summary=summary,
            fields=frozenset({"advantages", "old_logprobs"}),
            expected_failures=_EXPECTED.get(name, {}),
        )
    yield Loss(
        name="surrogate",
        build="finetooth_policygradient.surrogate:build",
        summary="policy-gradient loss for rollouts: clipped, cispo or sapo, with weights for tokens, KL and entropy",
        needs=frozenset({"logprobs", "entropy"}),
        fields=frozenset(
            {"advantages", "token_weights", "old_logprobs", "behaviour_logprobs", "policy_mask", "entropy_weights"}
        ),
    )
    yield Loss(
        name="clipped_value",
        build="finetooth_policygradient.value:build",
        summary="squared error of a critic's values, which are clipped around the old values",
        needs=frozenset({"values"}),
        fields=frozenset({"returns", "old_values", "token_weights", "value_offsets"}),
    )
