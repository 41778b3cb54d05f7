"""The method `ppo`: a policy with a critic head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from finetooth_hooks.context import Context
from finetooth_hooks.data.datum import Datum
from finetooth_hooks.engine import Engine
from finetooth_hooks.rollouts import Rollout
from finetooth_methods.reference import ROLE as REFERENCE
from finetooth_rollouts.advantages import normalised_over_batch
from finetooth_rollouts.asking import for_sampled, outputs_of
from finetooth_rollouts.data import data_of, for_every, sampled_logprobs
from finetooth_rollouts.method import RolloutMethod, surrogate_loss
from finetooth_rollouts.options import RolloutOptions
from finetooth_rollouts.token_weights import LossType
from finetooth_toolbox.combined_losses import combined
from pydantic import Field, model_validator

from finetooth_ppo.critic_start import CriticStart
from finetooth_ppo.gae import Floats, advantages_and_returns, token_rewards, whitened
from finetooth_ppo.kl import AdaptiveKl, FixedKl


class PpoOptions(RolloutOptions):
    """Options of `ppo`."""

    num_generations: int = Field(default=1, ge=1)
    """Rollouts for each prompt. The critic provides the baseline, so one is enough."""
    num_iterations: int = Field(default=4, ge=1)
    """How often each batch of rollouts trains."""
    loss_type: LossType = "bnpo"
    """How tokens are weighted; for `cispo`, `sapo` and `vespo` also how the ratio enters the loss."""
    beta: float = Field(default=0.05, ge=0)
    """Cost of one nat of KL to the reference; with `kl_target` the initial cost. 0 needs no reference."""
    kl_in: Literal["loss", "reward"] = "reward"
    """Whether the KL is subtracted from the rewards of the tokens (k1), or is part of the loss."""
    kl_target: float | None = Field(default=None, gt=0)
    """Target KL of an answer, in nats, towards which `beta` is adjusted. Left out, `beta` is fixed."""
    kl_gain: float = Field(default=0.1, gt=0)
    """Speed of the adjustment: in a batch `beta` changes by at most a fifth of this share."""
    discount: float = Field(default=1.0, ge=0, le=1)
    """Gamma: discount of a reward for each token before it."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """Lambda of the advantages (GAE): 0 trusts the critic, 1 the actual rewards."""
    value_coef: float = Field(default=0.1, ge=0)
    """Weight of the critic's loss."""
    value_clip: float | None = Field(default=0.2, gt=0)
    """How far a value may move from that of the weights that sampled; null: no limit."""
    critic: str = ""
    """Initial critic: a reward model (a run of method `rm` on the same model) or a run of `ppo`, whose artifact holds
    its critic. Its value for the beginning of an answer is the expected reward, and the new critic's head learns the
    rest. Left out, the head learns everything."""
    whiten_rewards: bool = False
    """Whether to divide the rewards of tokens by their standard deviation over the batch."""
    whiten_advantages: bool = True
    """Whether to normalise advantages over the batch to mean 0 and standard deviation 1."""
    missing_eos_penalty: float = Field(default=0.0, ge=0)
    """Subtracted from the reward of an answer that was cut off."""
    skip_zero_advantage_batches: bool = False
    """Whether to skip the step of a batch whose advantages are all 0. Off by default, since the critic still learns
    from it."""

    @model_validator(mode="after")
    def _steered(self) -> PpoOptions:
        if self.kl_target is not None and (self.kl_in != "reward" or not self.beta):
            raise ValueError(
                "kl_target controls the KL penalty in the rewards: leave kl_in out, and set beta to its first weight"
            )
        return self


class PpoMethod(RolloutMethod):
    """Proximal policy optimisation (Schulman et al., 2017, arXiv:1707.06347) over tokens, with the critic as a head on
    the policy's last layer."""

    def __init__(self, options: PpoOptions, context: Context) -> None:
        policy = surrogate_loss(options, context)
        value = context.loss({"name": "clipped_value", "clip": options.value_clip}, setting="method")
        loss = combined([(policy, 1.0), (value, options.value_coef)])
        # the base class gets REINFORCE++, PPO without a critic; `with_advantages` replaces it
        super().__init__(options, context, normalised_over_batch, loss=for_sampled(loss, options))
        self._ppo = options
        self._start = CriticStart(options.critic, context) if options.critic else None
        target = options.kl_target
        self._kl = FixedKl(options.beta) if target is None else AdaptiveKl(options.beta, target, options.kl_gain)

    def with_advantages(self, engine: Engine, rollouts: Sequence[Rollout]) -> tuple[list[Rollout], dict[str, float]]:
        """Adds the advantage of each token, and for the critic its present value and the return (`old_values`,
        `returns`)."""
        options, data = self._ppo, data_of(rollouts, [0.0] * len(rollouts))
        own = outputs_of(engine, data, ("logprobs", "values"), options)
        values = [np.asarray(of["values"][datum.mask], dtype=np.float64) for of, datum in zip(own, data, strict=True)]
        begun = None if self._start is None else self._start.values(data, rollouts)
        if begun is not None:
            values = [v + of for v, of in zip(values, begun, strict=True)]
        apart = self._log_ratios(engine, data, own)
        rewards = [
            token_rewards(self._score(rollout), of, self._kl.coef) for rollout, of in zip(rollouts, apart, strict=True)
        ]
        if options.whiten_rewards:
            rewards = whitened(rewards, shift=False)
        pairs = [
            advantages_and_returns(of, v, discount=options.discount, smoothing=options.gae_lambda)
            for of, v in zip(rewards, values, strict=True)
        ]
        advantages = [of for of, _ in pairs]
        if options.whiten_advantages:
            advantages = whitened(advantages)
        updated = []
        for i, (rollout, a, v, (_, returns)) in enumerate(zip(rollouts, advantages, values, pairs, strict=True)):
            fields = {**rollout.fields, "old_values": for_every(rollout, v), "returns": for_every(rollout, returns)}
            fields |= {} if begun is None else {"value_offsets": for_every(rollout, begun[i])}
            updated.append(replace(rollout, advantages=for_every(rollout, a), fields=fields))
        metrics = {"value/explained_variance": explained_variance(values, [returns for _, returns in pairs])}
        if options.beta and options.kl_in == "reward":
            kl = float(np.mean([of.sum() for of in apart]))
            metrics |= {"kl_coef": self._kl.coef, "kl/answer": kl, "kl": kl * len(apart) / sum(map(len, apart))}
            self._kl.see(kl)
        return updated, metrics

    def _score(self, rollout: Rollout) -> float:
        cut = self._ppo.missing_eos_penalty if rollout.outcome == "length" else 0.0
        return (rollout.reward or 0.0) - cut

    def _log_ratios(self, engine: Engine, data: Sequence[Datum], own: Sequence[Mapping[str, Any]]) -> list[Floats]:
        """(T,) log policy - log reference of each rollout; 0 if the rewards do not include the KL."""
        if not (self._ppo.beta and self._ppo.kl_in == "reward"):
            return [np.zeros(int(datum.mask.sum())) for datum in data]
        there = outputs_of(engine, data, ("logprobs",), self._ppo, role=REFERENCE)
        return [
            np.asarray(sampled_logprobs(datum, here["logprobs"]) - sampled_logprobs(datum, of["logprobs"]), np.float64)
            for datum, here, of in zip(data, own, there, strict=True)
        ]

    def state(self) -> Mapping[str, Any]:
        """The state of all online methods, with the price of the KL."""
        return {**super().state(), "kl": dict(self._kl.state())}

    def take(self, state: Mapping[str, Any]) -> None:
        super().take(state)
        self._kl.restore(state["kl"])


def explained_variance(values: Sequence[Floats], returns: Sequence[Floats]) -> float:
    """The share of the returns' variance that the critic explains: 1 is all, 0 is as good as a constant; 0 if all
    returns are equal."""
    came = np.concatenate(returns)
    spread = float(came.var())
    return 1.0 - float((came - np.concatenate(values)).var()) / spread if spread else 0.0
