"""Inputs and results of losses.

A loss is a plain function, `loss(outputs, data, state) -> LossResult`. It knows neither tokenizer nor model nor loop.
With every layout of the engine, it gets rectangles (sequence s, target t) in the backend's arrays, and it uses the
functions of `finetooth_hooks.arrays`, which torch, MLX and NumPy share.

The engine divides each component by its normalizer, counted over the whole optimizer step and all ranks *before* the
first micro-batch, so that accumulation, layout and sharding never change the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from finetooth_hooks.entries import Together

Array = Any
"""An array of the calling backend: torch.Tensor, mlx.core.array or numpy.ndarray."""

Outputs = Mapping[str, Array]
"""By the name given in `Loss.needs`: `logprobs` (S, T) or (S, T, K) and `entropy` (S, T), zero where the mask is
false; `NAME@ROLE` for another role; `logits` (S, T, V). Of a scalar head `values` (S, T), its number at each position
where the mask is true and 0 elsewhere, and `scores` (S,), that of a sequence's last such position, 0 without one.
`hidden:DEPTH` are the states of a layer: see `OutputName`."""

LossState = Mapping[str, Any]
"""The state of a loss between steps (running means): numbers or NumPy arrays, part of every checkpoint."""


@dataclass(frozen=True)
class LossData:
    """The data of one evaluation of a loss: S sequences padded to T targets.

    Attributes:
        mask: (S, T) bool; false for padding and for targets that do not count.
        targets: (S, T) or (S, T, K) token ids, 0 where the mask is false.
        fields: (S, T) floats by name, 0 where padded. `weights` always exists (by default 1 where the mask is true).
        scalars: (S,) floats by name.
        group: (S,) index of the group, 0-based and contiguous; sequences of a group are adjacent, in the method's
            order; a sequence without a group is a group.
    """

    mask: Array
    targets: Array
    fields: Mapping[str, Array]
    scalars: Mapping[str, Array]
    group: Array

    @property
    def sequences(self) -> int:
        """S, the number of sequences."""
        return int(self.mask.shape[0])


Per = Literal["weights", "tokens", "sequences", "groups", "none"]
"""Normalizers, summed over the step: the weights of trained targets, the trained targets, the sequences with a trained
target, the groups, or 1 (a plain sum, as in the Tinker protocol)."""


@dataclass(frozen=True)
class Contribution:
    """One component of a loss.

    Attributes:
        total: scalar array, the *sum* over the call's examples; the engine divides it by the normalizer of the whole
            step.
        per: the normalizer.
        weight: factor of this component in the total loss.
    """

    total: Array
    per: Per = "weights"
    weight: float = 1.0


@dataclass(frozen=True)
class Metric:
    """A number to report: over micro-batches `mean` is sum(total) / sum(count), and the others use only `total`."""

    total: Array
    count: Array | float = 1.0
    reduce: Literal["mean", "sum", "max", "min"] = "mean"


@dataclass(frozen=True)
class LossResult:
    """Result of a loss: contributions by component, metrics by name, and its state after the step.

    Only a loss with `together: step` may change its state: any other is evaluated once per micro-batch, and its state
    would depend on the layout. The engine refuses such a change by name.
    """

    contributions: Mapping[str, Contribution]
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    state: LossState = field(default_factory=dict)


class LossFn(Protocol):
    """A loss; usually a `functools.partial` of a plain function over its options."""

    def __call__(self, outputs: Outputs, data: LossData, state: LossState) -> LossResult: ...


@dataclass(frozen=True)
class LossSpec:
    """A loss with its entry's declarations, for engines. `Context.loss(pick)` makes one.

    Attributes:
        name: full name, keys the state in checkpoints.
        needs: outputs it reads.
        together: what it must see at once.
        proportional_to: field proportional to its gradient with respect to `logprobs`; see `Loss`.
        temperature, repetition_penalty: of sampling, for all roles' outputs; other than 1 only with the capability of
            that name.
    """

    name: str
    fn: LossFn
    needs: frozenset[str] = frozenset({"logprobs"})
    together: Together = "sequence"
    proportional_to: str | None = None
    temperature: float = 1.0
    repetition_penalty: float = 1.0

    @property
    def roles(self) -> frozenset[str]:
        """Roles other than the policy with outputs that the loss reads."""
        return frozenset(need.split("@", 1)[1] for need in self.needs if "@" in need)
