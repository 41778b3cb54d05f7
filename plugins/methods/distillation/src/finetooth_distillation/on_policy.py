"""The method `opd`: the policy answers, and learns the teacher's judgement of each of its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from finetooth_hooks.context import Context
from finetooth_hooks.data.datum import Datum
from finetooth_hooks.engine import Engine, RoleModel
from finetooth_hooks.plan import Pick
from finetooth_hooks.rollouts import Rollout
from finetooth_rollouts.advantages import rewards_of
from finetooth_rollouts.asking import outputs_of
from finetooth_rollouts.data import data_of, for_every, learned, sampled_logprobs
from finetooth_rollouts.method import RolloutMethod
from finetooth_rollouts.options import RolloutOptions
from finetooth_rollouts.token_weights import LossType
from pydantic import Field, model_validator

from finetooth_distillation.loss import Divergence
from finetooth_distillation.teacher import ROLE, Teacher, held, with_teacher


class DistributionOptions(RolloutOptions):
    """Options of methods that compare the policy with a teacher on its own answers."""

    teacher_top_k: int = Field(default=0, ge=0)
    """0: the advantage of a sampled token is the teacher's log-probability minus the sampler's. Otherwise the loss is
    the divergence of the two distributions at each position, over this many of the teacher's likeliest tokens, with all
    others as one."""
    divergence: Divergence = "reverse"
    """With `teacher_top_k`: divergence between the two distributions."""
    js_beta: float = Field(default=0.5, gt=0, lt=1)
    """The teacher's share of the mixture, for `js`."""
    rewards: list[Pick] = Field(default_factory=list)
    """Rewards that score answers for the reports; they do not train."""
    num_generations: int = Field(default=1, ge=1)
    """Rollouts for each prompt."""
    loss_type: LossType = "bnpo"
    """How tokens are weighted; for `cispo`, `sapo` and `vespo` also how the ratio enters the loss."""

    @model_validator(mode="after")
    def _possible(self) -> DistributionOptions:
        narrowed = self.top_k or self.top_p < 1 or self.min_p or self.repetition_penalty != 1 or self.guided
        if self.teacher_top_k and narrowed:
            raise ValueError(
                "teacher_top_k compares whole distributions: leave top_k, top_p, min_p, repetition_penalty and guided "
                "out"
            )
        if self.teacher_top_k and (self.beta or self.entropy_coef or self.prefetch):
            raise ValueError("teacher_top_k has a loss of its own: leave beta, entropy_coef and prefetch out")
        if self.teacher_top_k and (self.entropy_target is not None or self.top_entropy_quantile < 1):
            raise ValueError("teacher_top_k has a loss of its own: leave entropy_target and top_entropy_quantile out")
        if self.replay_groups or self.reroll_groups:
            raise ValueError(
                "replay_groups and reroll_groups select by reward, and opd learns from no reward: leave them out"
            )
        if self.dynamic_sampling:
            raise ValueError("dynamic_sampling selects by reward, and opd learns from no reward: leave it out")
        return self


class OnPolicyOptions(DistributionOptions):
    """Options of `opd`."""

    teacher: Teacher
    """The teacher model; a mapping, or only its `policy`."""


class OnPolicyDistillation(RolloutMethod):
    """On-policy distillation (Agarwal et al., 2023, arXiv:2306.13649; per token as an advantage: Thinking Machines Lab,
    2025, "On-Policy Distillation")."""

    def __init__(self, options: OnPolicyOptions, context: Context) -> None:
        loss = None
        if options.teacher_top_k:
            self.own_ratios = False
            pick = {"name": "distillation", "divergence": options.divergence, "js_beta": options.js_beta}
            loss = replace(context.loss(pick, setting="method"), temperature=options.temperature)
        super().__init__(options, context, rewards_of, loss=loss)
        self._opd = options

    @property
    def roles(self) -> Mapping[str, RoleModel | None]:
        """See `protocols.Method.roles`: the teacher, and the reference if the loss has a KL to it."""
        return {**super().roles, **held(self._opd.teacher)}

    def with_advantages(self, engine: Engine, rollouts: Sequence[Rollout]) -> tuple[list[Rollout], dict[str, float]]:
        """Advantages of tokens: log teacher - log policy. Their mean over the policy's samples is minus the reverse
        KL."""
        data = data_of(rollouts, [0.0] * len(rollouts))
        outputs = outputs_of(engine, data, ("logprobs",), self._opd, role=ROLE)
        updated, total = [], 0.0
        for rollout, datum, of in zip(rollouts, data, outputs, strict=True):
            apart = np.asarray(sampled_logprobs(datum, of["logprobs"]), np.float64)
            apart -= np.array(rollout.of_policy(rollout.logprobs))
            total -= float(apart.sum())
            updated.append(replace(rollout, advantages=for_every(rollout, apart)))
        return updated, {"reverse_kl": total / sum(rollout.length for rollout in rollouts)}

    def training_data(self, engine: Engine, rollouts: Sequence[Rollout], weights: Sequence[float]) -> list[Datum]:
        """The data of the rollouts; with `teacher_top_k` they have the teacher's distribution at each position."""
        k = self._opd.teacher_top_k
        if not k:
            return super().training_data(engine, rollouts, weights)
        data = [learned(rollout, weight) for rollout, weight in zip(rollouts, weights, strict=True)]
        size = self.context.facts.vocab_size
        return with_teacher(engine, data, k, temperature=self._opd.temperature, vocabulary=size)
