"""What a loss sees and what it returns.

A loss is a plain function, `loss(outputs, data, state) -> LossResult`. It tokenises nothing, knows no model and no
loop. Whatever layout the engine chose, it sees rectangles (sequence s, target t) in the arrays of the backend that
calls it, and is written with the functions of `finetooth_hooks.arrays`, which torch, MLX and NumPy share.

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
false; `NAME@ROLE` for another role; `logits` (S, T, V). Of a scalar head `values` (S, T), the head's number for each
position where the mask is true and 0 elsewhere, and `scores` (S,), that of the last such position of a sequence, 0
where there is none. `hidden:DEPTH` are the states of a layer: see `OutputName`."""

LossState = Mapping[str, Any]
"""What a loss carries from step to step (running means): numbers or NumPy arrays, part of every checkpoint."""


@dataclass(frozen=True)
class LossData:
    """The data of one evaluation of a loss: S sequences padded to T targets.

    Attributes:
        mask: (S, T) bool; false for padding and for targets that do not count.
        targets: (S, T) or (S, T, K) token ids, 0 where the mask is false.
        fields: (S, T) floats by name, 0 where padded. `weights` is always there (1 where the mask is true unless the
            data says otherwise).
        scalars: (S,) floats by name.
        group: (S,) index of the group, 0-based and contiguous; sequences of a group are adjacent, in the order
            given by the method; a sequence without a group is its own.
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
"""Normalizers, summed over the step: the weights of the targets that count, the targets that count, the sequences
with at least one target that counts, the groups, or 1 (a plain sum, as on the Tinker wire)."""


@dataclass(frozen=True)
class Contribution:
    """One component of a loss.

    Attributes:
        total: scalar array, the *sum* over what was seen; the engine divides it by the normalizer of the whole step.
        per: the normalizer.
        weight: factor of this component in the total loss.
    """

    total: Array
    per: Per = "weights"
    weight: float = 1.0


@dataclass(frozen=True)
class Metric:
    """A number to report: over micro-batches `mean` is sum(total) / sum(count), and the others use `total` alone."""

    total: Array
    count: Array | float = 1.0
    reduce: Literal["mean", "sum", "max", "min"] = "mean"


@dataclass(frozen=True)
class LossResult:
    """What a loss returns: contributions by component, metrics by name, and its state after the step.

    Only a loss with `together: step` may return a state that differs from the one it was given: any other is
    evaluated once a micro-batch, and its state would depend on the layout. The engine refuses it by name.
    """

    contributions: Mapping[str, Contribution]
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    state: LossState = field(default_factory=dict)


class LossFn(Protocol):
    """A loss; usually a `functools.partial` of a plain function over its options."""

    def __call__(self, outputs: Outputs, data: LossData, state: LossState) -> LossResult: ...


@dataclass(frozen=True)
class LossSpec:
    """A loss with what its entry declares about it; what engines take. `Context.loss(pick)` makes one.

    Attributes:
        name: full name, keys the state in checkpoints.
        needs: outputs it reads.
        together: what it must see at once.
        proportional_to: field that its gradient with respect to `logprobs` is in proportion to; see `Loss`.
        temperature, repetition_penalty: of sampling, for all roles' outputs; not 1 only with the capability so called.
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
        """Roles other than the policy whose outputs the loss reads."""
        return frozenset(need.split("@", 1)[1] for need in self.needs if "@" in need)
