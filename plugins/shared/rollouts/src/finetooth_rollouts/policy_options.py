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
    """Whether each token has its own ratio to the weights that sampled it, or each sequence has one (GSPO)."""
    epsilon: float = Field(default=0.2, ge=0, le=1)
    """The ratio is clipped at 1 - `epsilon` below."""
    epsilon_high: float | None = Field(default=None, ge=0)
    """The ratio is clipped at 1 + `epsilon_high` above. Default: `epsilon`, and 4 for `cispo`."""
    delta: float | None = Field(default=None, gt=1)
    """Upper limit of the ratio if the advantage is negative (two-sided clip). Left out, there is none."""
    sapo_temperature_pos: float = Field(default=1.0, gt=0)
    """Tau of `sapo` for positive advantages."""
    sapo_temperature_neg: float = Field(default=1.05, gt=0)
    """Tau of `sapo` for other advantages."""
    vespo_k_pos: float = Field(default=2.0, ge=0)
    """k of `vespo` if the advantage is not negative: phi(w) = exp(lambda) w^k exp(-lambda w)."""
    vespo_lambda_pos: float = Field(default=3.0, gt=0)
    """Lambda of `vespo` if the advantage is not negative."""
    vespo_k_neg: float = Field(default=3.0, ge=0)
    """k of `vespo` for negative advantages."""
    vespo_lambda_neg: float = Field(default=2.0, gt=0)
    """Lambda of `vespo` for negative advantages."""
    beta: float = Field(default=0.0, ge=0)
    """Weight of the KL to the reference, the policy before the run; 0 needs no reference."""
    kl: Kl = "k3"
    """Estimator of the KL in the loss; in the reward it is always k1."""
    use_bias_correction_kl: bool = True
    """Whether the estimate in the loss is multiplied by each token's own ratio, and by `importance_correction`, so that
    its mean gradient is the gradient of the KL. Without it, k3 holds the policy too weakly where the reference finds a
    token unlikely, and k1 does not hold it at all."""
    entropy_coef: float = 0.0
    """Weight of an entropy bonus, the mean over tokens. With `entropy_target` it is the initial weight."""
    importance_correction: Literal["none", "truncate", "mask"] = "truncate"
    """Corrects for tokens that other weights sampled: multiplies their loss by exp(trainer's - sampler's
    log-probability). A weight above the cap counts as the cap (`truncate`) or as 0 (`mask`). Rollouts of the current
    weights need none."""
    importance_correction_level: Literal["token", "sequence", "geometric"] = "token"
    """Whether each token has its own weight, or a sequence has the product of its tokens' weights, or their geometric
    mean."""
    importance_correction_cap: float = Field(default=3.0, gt=0)
    """Largest weight."""
    importance_correction_floor: float = Field(default=0.0, ge=0)
    """Smallest weight; a smaller one counts as this, or as 0 with `mask`."""
    off_policy_mask_threshold: float | None = Field(default=None, gt=0)
    """Leave answers with a negative advantage out of the loss if the policy finds them less likely than their sampler
    did by more than this, in nats a token (OPSM). Begin with 0.5. Left out, all stay."""

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
