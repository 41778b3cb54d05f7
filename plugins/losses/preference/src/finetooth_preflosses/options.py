"""Options of the losses, named as in their papers and in TRL."""

from __future__ import annotations

from finetooth_hooks import Options
from pydantic import Field

from finetooth_preflosses.divergences import Divergence


class Beta(Options):
    """Options of all losses with a reference."""

    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is kept close to the reference: higher is closer."""


class PairOptions(Beta):
    """Options of losses on pairs."""

    ld_alpha: float | None = Field(default=None, ge=0, le=1)
    """Weight of targets beyond the length of the pair's shorter answer, so that length itself counts less (LD-DPO).
    Left out, they have full weight."""


class RewardOptions(PairOptions):
    """Options of losses on the difference of two rewards."""

    length_normalized: bool = False
    """Divide an answer's log-ratio by its length in tokens."""
    f_divergence: Divergence = "reverse_kl"
    """The divergence that keeps the policy close to the reference (f-DPO)."""
    f_alpha: float = 0.5
    """Alpha of `alpha_divergence`; 1 is the reverse KL."""


class LogitOptions(RewardOptions):
    """Options of losses on the logit of the preference."""

    margin_weight: float = Field(default=0.0, ge=0)
    """Share of a row's margin by which the chosen answer must be ahead, in rewards (ODPO, Amini et al., 2024,
    arXiv:2402.10571); 0 ignores margins."""


class SigmoidOptions(LogitOptions):
    """Options of `sigmoid`."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Assumed share of pairs whose labels are swapped."""


class RobustOptions(LogitOptions):
    """Options of `robust`."""

    label_smoothing: float = Field(default=0.1, ge=0, lt=0.5)
    """Share of pairs whose labels are swapped."""


class ExoOptions(LogitOptions):
    """Options of `exo_pair`."""

    label_smoothing: float = Field(default=1e-3, gt=0, lt=0.5)
    """How much of the preference goes to the rejected answer."""


class DiscopopOptions(LogitOptions):
    """Options of `discopop`."""

    tau: float = Field(default=0.05, gt=0)
    """How sharply the two losses are blended."""


class BcoOptions(PairOptions):
    """Options of `bco_pair`."""

    shift: bool = True
    """Whether to compare rewards with their running mean, as the paper does; without it with 0, as TRL 1.16 does."""


class AotOptions(PairOptions):
    """Options of `aot` and `aot_unpaired`."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Assumed share of labels that are swapped."""


class OrpoOptions(Options):
    """Options of `orpo`."""

    beta: float = Field(default=0.1, ge=0)
    """Weight of the odds ratio that is added to the log-likelihood (lambda in the paper)."""


class SimpoOptions(Options):
    """Options of `simpo`."""

    beta: float = Field(default=2.0, gt=0)
    """Scale of the difference of mean log-probabilities."""
    gamma: float = Field(default=0.5, ge=0)
    """Margin by which the chosen answer must be ahead, after scaling by `beta`."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Assumed share of pairs whose labels are swapped."""
    alpha: float = 0.0
    """Shape of the reward (AlphaPO); 0 is SimPO's own."""
    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of the added log-likelihood of chosen answers (CPO-SimPO)."""


class CpoOptions(Options):
    """Options of `cpo`."""

    beta: float = Field(default=0.1, gt=0)
    """Scale of the difference of log-probabilities."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Assumed share of pairs whose labels are swapped."""
    sft_weight: float = Field(default=1.0, ge=0)
    """Weight of the added log-likelihood of chosen answers."""


class KtoOptions(Beta):
    """Options of `kto`."""

    desirable_weight: float = Field(default=1.0, gt=0)
    """Weight of desirable answers (lambda_D in the paper)."""
    undesirable_weight: float = Field(default=1.0, gt=0)
    """Weight of undesirable answers (lambda_U in the paper)."""
