"""Options of how advantages move a policy: those of the loss `surrogate`, and of every method that learns by it."""

from __future__ import annotations

from typing import Literal

from finetooth_hooks.options import Options
from pydantic import Field, model_validator

Kl = Literal["k1", "k2", "k3"]


class PolicyOptions(Options):
    """What is made of the ratio between the policy and the weights that sampled, what holds the policy back, and how
    tokens count that other weights drew."""

    importance_sampling_level: Literal["token", "sequence"] = "token"
    """Whether each token has a ratio to the weights that sampled it, or each sequence one (GSPO)."""
    epsilon: float = Field(default=0.2, ge=0, le=1)
    """How far below 1 the ratio is clipped."""
    epsilon_high: float | None = Field(default=None, ge=0)
    """How far above 1; left out, as `epsilon`, and 4 for `cispo`."""
    delta: float | None = Field(default=None, gt=1)
    """Bound of the ratio where the advantage is negative (two-sided clip); left out, there is none."""
    sapo_temperature_pos: float = Field(default=1.0, gt=0)
    """Tau of `sapo` where the advantage is positive."""
    sapo_temperature_neg: float = Field(default=1.05, gt=0)
    """Tau of `sapo` elsewhere."""
    vespo_k_pos: float = Field(default=2.0, ge=0)
    """Power of `vespo` where the advantage is not negative: phi(w) = exp(lambda) w^k exp(-lambda w)."""
    vespo_lambda_pos: float = Field(default=3.0, gt=0)
    """Its lambda there."""
    vespo_k_neg: float = Field(default=3.0, ge=0)
    """Power elsewhere."""
    vespo_lambda_neg: float = Field(default=2.0, gt=0)
    """Its lambda elsewhere."""
    beta: float = Field(default=0.0, ge=0)
    """Weight of the KL to the reference, the policy as it was before the run; 0 needs none."""
    kl: Kl = "k3"
    """Estimate of the KL in the loss; in the reward it is always k1."""
    use_bias_correction_kl: bool = True
    """Whether the estimate in the loss is multiplied by each token's own ratio, and by `importance_correction`. Then
    the mean of its gradient is the gradient of the KL. Without it k3 holds the policy too little where the reference
    finds a token unlikely, and k1 holds it to nothing."""
    entropy_coef: float = 0.0
    """Weight of an entropy bonus, the mean over tokens. A method with `entropy_target` begins with it."""
    importance_correction: Literal["none", "truncate", "mask"] = "truncate"
    """The weight exp(trainer's - sampler's log-probability) of what other weights drew: it multiplies
    the loss, and beyond the cap it counts as the cap, or as 0. Rollouts of the weights that train need none."""
    importance_correction_level: Literal["token", "sequence", "geometric"] = "token"
    """Whether a token has a weight of its own, or all of a sequence their product, or its geometric mean."""
    importance_correction_cap: float = Field(default=3.0, gt=0)
    """The largest weight."""
    importance_correction_floor: float = Field(default=0.0, ge=0)
    """The smallest; below it a weight counts as this, or with `mask` as 0."""
    off_policy_mask_threshold: float | None = Field(default=None, gt=0)
    """Answers with a negative advantage that the policy finds less likely than who drew them, by more than so many
    nats a token, are left out of the loss (OPSM); 0.5 is a beginning. Left out, none are."""

    @property
    def beta_of_loss(self) -> float:
        """The weight of the KL in the loss."""
        return self.beta

    @model_validator(mode="after")
    def _kl_has_a_gradient(self) -> PolicyOptions:
        if self.beta_of_loss and self.kl == "k1" and not self.use_bias_correction_kl:
            raise ValueError(
                "kl k1 without use_bias_correction_kl does nothing: its gradient does not contain the reference; "
                "leave use_bias_correction_kl on, or set kl to k2 or k3"
            )
        return self

    @model_validator(mode="after")
    def _floor_below_cap(self) -> PolicyOptions:
        if self.importance_correction_floor >= self.importance_correction_cap:
            raise ValueError("importance_correction_floor is not below importance_correction_cap")
        return self
