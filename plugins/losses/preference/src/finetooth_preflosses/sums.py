"""Sums log-probabilities of targets for each answer of a pair.

A pair is two sequences; the scalar `label` is 1 for the chosen and 0 for the rejected one. Pairs are matched by their
order in the step: the first chosen one with the first rejected one.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetooth_hooks import LossData, Outputs
from finetooth_hooks import arrays as xp

Array = xp.Array


@dataclass(frozen=True)
class Pairs:
    """Answers of P pairs, each array (P,).

    Attributes:
        chosen, rejected: sum of the policy's log-probabilities.
        chosen_reference, rejected_reference: the reference's; 0 without a reference.
        chosen_length, rejected_length: number of unmasked targets, at least 1.
        real: both answers have an unmasked target.
        margin: the row's margin of the chosen one, 0 without one.
    """

    chosen: Array
    rejected: Array
    chosen_reference: Array
    rejected_reference: Array
    chosen_length: Array
    rejected_length: Array
    real: Array
    margin: Array

    @property
    def chosen_ratio(self) -> Array:
        """(P,) log pi(y_w|x) - log pi_ref(y_w|x)."""
        return self.chosen - self.chosen_reference

    @property
    def rejected_ratio(self) -> Array:
        """(P,) log pi(y_l|x) - log pi_ref(y_l|x)."""
        return self.rejected - self.rejected_reference

    def sum(self, values: Array) -> Array:
        """The sum over the real pairs, a scalar."""
        return xp.sum(xp.where(self.real, values, 0.0))

    @property
    def count(self) -> Array:
        """The number of real pairs, a scalar."""
        return xp.sum(xp.astype_like(self.real, self.chosen))


def pairs_of(
    outputs: Outputs, data: LossData, *, reference: bool, ld_alpha: float | None = None, margins: bool = False
) -> Pairs:
    """The pairs of an evaluation.

    Args:
        outputs: `logprobs` (S, T), and `logprobs@reference` with a reference.
        data: with the scalar `label` (S,), equally many 1 and 0, and `margin` if `margins` is true.
        ld_alpha: weight of targets beyond the length of the shorter answer; None is 1. LD-DPO (Liu et al., 2024,
            arXiv:2409.06411).
        margins: read the scalar `margin` of the chosen ones.

    Raises:
        ValueError: an odd number of sequences.
    """
    if data.sequences % 2:
        raise ValueError(f"{data.sequences} sequences are not pairs")
    first, second = _order(data.scalars["label"])
    counts = xp.astype_like(data.mask, outputs["logprobs"])
    lengths = xp.sum(counts, axis=1)
    if ld_alpha is not None:
        counts = counts * _desensitised(counts, lengths, first, second, ld_alpha)
    policy = _sums(outputs["logprobs"], data.mask, counts)
    zero = xp.zeros_like(lengths)
    known = _sums(outputs["logprobs@reference"], data.mask, counts) if reference else zero
    margin = data.scalars["margin"] if margins else zero
    here, there = xp.take(lengths, first), xp.take(lengths, second)
    return Pairs(
        chosen=xp.take(policy, first),
        rejected=xp.take(policy, second),
        chosen_reference=xp.take(known, first),
        rejected_reference=xp.take(known, second),
        chosen_length=xp.maximum(here, 1.0),
        rejected_length=xp.maximum(there, 1.0),
        real=xp.logical_and(here > 0, there > 0),
        margin=xp.take(margin, first),
    )


def _order(label: Array) -> tuple[Array, Array]:
    """Indices of the chosen sequences in their order, and of the rejected ones."""
    size = int(label.shape[0])
    # distinct keys, so that sorting need not be stable
    order = xp.argsort(label * (2.0 * size) - xp.arange(size, label), ascending=False)
    return order[: size // 2], order[size // 2 :]


def _sums(logprobs: Array, mask: Array, counts: Array) -> Array:
    # masked before the product: masked values are arbitrary, and 0 * -inf is NaN
    return xp.sum(xp.where(mask, logprobs, 0.0) * counts, axis=1)


def _desensitised(counts: Array, lengths: Array, first: Array, second: Array, alpha: float) -> Array:
    """(S, T) weights: 1 up to the length of the pair's shorter answer, alpha after it."""
    shared = xp.minimum(xp.take(lengths, first), xp.take(lengths, second))
    back = xp.argsort(xp.concat([first, second]))
    both = xp.take(xp.concat([shared, shared]), back)
    return xp.where(xp.cumsum(counts, axis=1) <= both[:, None], 1.0, alpha)
