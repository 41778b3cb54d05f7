"""Options of the methods."""

from __future__ import annotations

from typing import Literal

from finetooth_hooks import Options, Pick
from finetooth_methods.reference import Reference, ReferenceOptions
from pydantic import Field


class RowOptions(Options):
    """How unusable rows are treated."""

    bad_rows: Literal["drop", "raise"] = "drop"
    """Rows from which nothing can be learned: two answers that are the same, an empty answer, no
    prompt. `drop` leaves them out and counts them, `raise` names them and stops."""


class DpoOptions(RowOptions):
    """Options of `dpo`."""

    loss: Pick = "sigmoid"
    """The loss, a name or a mapping with `name` and its options."""
    losses: list[Pick] = Field(default_factory=list)
    """Several at once, `[{name: sigmoid}, {name: sft, weight: 0.1}]`: their weighted sum. Instead of `loss`."""
    beta: float | None = Field(default=None, gt=0)
    """How strongly the policy is held to the reference, for every loss that does not say it itself; left out, each has
    its own default."""
    reference: Reference = Field(default_factory=ReferenceOptions)
    """The reference; a mapping, or only its `policy`."""


class OrpoOptions(RowOptions):
    """Options of `orpo`."""

    beta: float = Field(default=0.1, ge=0)
    """Weight of the odds ratio that is added to the log-likelihood; the paper's lambda."""


class SimpoOptions(RowOptions):
    """Options of `simpo`."""

    beta: float = Field(default=2.0, gt=0)
    """Scale of the difference of mean log-probabilities."""
    gamma: float = Field(default=0.5, ge=0)
    """By how much the chosen answer must be ahead, after `beta`."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs whose labels are assumed to be swapped."""
    alpha: float = 0.0
    """Shape of the reward (AlphaPO); 0 is SimPO's own."""
    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of the chosen answers' log-likelihood in the sum: CPO-SimPO."""


class CpoOptions(RowOptions):
    """Options of `cpo`."""

    beta: float = Field(default=0.1, gt=0)
    """Scale of the difference of log-probabilities."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs whose labels are assumed to be swapped."""
    sft_weight: float = Field(default=1.0, ge=0)
    """Weight of the chosen answers' log-likelihood in the sum."""


class KtoOptions(RowOptions):
    """Options of `kto`."""

    loss: Literal["kto", "apo_zero_unpaired"] = "kto"
    """`kto` judges rewards against an estimate of the KL to the reference; `apo_zero_unpaired` against 0."""
    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference."""
    desirable_weight: float = Field(default=1.0, gt=0)
    """Weight of desirable answers."""
    undesirable_weight: float = Field(default=1.0, gt=0)
    """Weight of undesirable answers. The paper recommends weights with which the desirable answers count 1 to 1.33
    times what the undesirable ones do; the plan says which those are."""
    reference: Reference = Field(default_factory=ReferenceOptions)
    """The reference; a mapping, or only its `policy`."""
