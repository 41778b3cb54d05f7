"""Options of the methods."""

from __future__ import annotations

from typing import Literal

from finetooth_hooks import Options, Pick
from finetooth_methods.reference import Reference, ReferenceOptions
from pydantic import Field


class RowOptions(Options):
    """How unusable rows are treated."""

    bad_rows: Literal["drop", "raise"] = "drop"
    """What happens to rows without anything to learn: two equal answers, an empty answer, no prompt. `drop` leaves them
    out and counts them, `raise` names them and stops."""


class DpoOptions(RowOptions):
    """Options of `dpo`."""

    loss: Pick = "sigmoid"
    """The loss: a name, or a mapping with `name` and its options."""
    losses: list[Pick] = Field(default_factory=list)
    """Several losses instead of `loss`: `[{name: sigmoid}, {name: sft, weight: 0.1}]`. Their weighted sum is
    minimised."""
    beta: float | None = Field(default=None, gt=0)
    """How strongly the policy is kept close to the reference, in every loss that does not set its own. Left out, each
    loss has its own default."""
    reference: Reference = Field(default_factory=ReferenceOptions)
    """The reference; a mapping, or only its `policy`."""


class OrpoOptions(RowOptions):
    """Options of `orpo`."""

    beta: float = Field(default=0.1, ge=0)
    """Weight of the odds ratio that is added to the log-likelihood (lambda in the paper)."""


class SimpoOptions(RowOptions):
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


class CpoOptions(RowOptions):
    """Options of `cpo`."""

    beta: float = Field(default=0.1, gt=0)
    """Scale of the difference of log-probabilities."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Assumed share of pairs whose labels are swapped."""
    sft_weight: float = Field(default=1.0, ge=0)
    """Weight of the added log-likelihood of chosen answers."""


class KtoOptions(RowOptions):
    """Options of `kto`."""

    loss: Literal["kto", "apo_zero_unpaired"] = "kto"
    """`kto` compares rewards with an estimate of the KL to the reference, `apo_zero_unpaired` with 0."""
    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is kept close to the reference."""
    desirable_weight: float = Field(default=1.0, gt=0)
    """Weight of desirable answers."""
    undesirable_weight: float = Field(default=1.0, gt=0)
    """Weight of undesirable answers. The paper recommends weights with which desirable answers count 1 to 1.33 times as
    much as undesirable ones; the plan shows these weights."""
    reference: Reference = Field(default_factory=ReferenceOptions)
    """The reference; a mapping, or only its `policy`."""
