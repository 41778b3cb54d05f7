"""Losses of reinforcement learning: from advantages and the sampler's log-probabilities to a gradient."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Loss, hookimpl

_LOSSES = {
    "importance_sampling": "the advantage times how much likelier the policy finds the token than the sampler did",
    "ppo": "the same, with a clipped ratio where clipping is the more careful choice",
    "cispo": "the log-probability times the advantage and a clipped ratio that is held constant",
    "dro": "the log-probability times the advantage, less a square that holds the policy to the sampler's",
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
        summary="what learns from rollouts: clipped, cispo or sapo, with weights for tokens, KL and entropy",
        needs=frozenset({"logprobs", "entropy"}),
        fields=frozenset(
            {"advantages", "token_weights", "old_logprobs", "behaviour_logprobs", "policy_mask", "entropy_weights"}
        ),
    )
    yield Loss(
        name="clipped_value",
        build="finetooth_policygradient.value:build",
        summary="the error of a critic, whose values are clipped around the old ones",
        needs=frozenset({"values"}),
        fields=frozenset({"returns", "old_values", "token_weights", "value_offsets"}),
    )
