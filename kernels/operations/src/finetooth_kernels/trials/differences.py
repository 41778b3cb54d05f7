"""How the results of a trial are compared with the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetooth_kernels.trials.calls import Tensors, Trial

__all__ = ["TOLERANCE", "Difference", "first_difference", "results"]

TOLERANCE = {torch.float32: 3e-5, torch.bfloat16: 4e-2, torch.float16: 8e-3, torch.float64: 1e-9}
"""Largest difference, as a share of the largest number: a few roundings on the way, and no more."""


@dataclass(frozen=True)
class Difference:
    """A result that is more than roundings away from the reference's.

    Attributes:
        which: `value 0`, `gradient 1`.
        got, expected: in words.
    """

    which: str
    got: str
    expected: str


def results(
    function: Callable[..., Any], trial: Trial, given: Tensors, *, backward: bool
) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]] | None:
    """Outputs, and gradients for incoming ones that differ from number to number; None where it says it cannot.

    Raises:
        TypeError: an output is not a tensor.
    """
    leaves = {name: tensor.detach().requires_grad_(backward) for name, tensor in given.items()}
    with torch.set_grad_enabled(backward):
        outputs = trial.call(function, leaves)
    if outputs is None:
        return None
    for place, out in enumerate(outputs):
        if not isinstance(out, Tensor):
            raise TypeError(f"{trial.name}: result {place} is a {type(out).__name__}, not a Tensor: {out!r}"[:300])
    followed = [out for out in outputs if out.requires_grad]
    if not backward or not followed:
        return outputs, ()
    generator = torch.Generator().manual_seed(11)
    tried = next(iter(trial.given.values())).dtype  # the same numbers for every precision of the outputs
    incoming = [torch.randn(out.shape, generator=generator).to(tried).to(out.device, out.dtype) for out in followed]
    return outputs, torch.autograd.grad(followed, list(leaves.values()), incoming, allow_unused=True)


def first_difference(
    function: Callable[..., Any], reference: Callable[..., Any], trial: Trial, given: Tensors, *, backward: bool
) -> Difference | None:
    """The first value or gradient that is not the reference's over the same numbers in float64; None if all are, or the
    function says that it cannot.

    Raises:
        TypeError: an output is not a tensor.
    """
    got = results(function, trial, given, backward=backward)
    if got is None:
        return None
    exact = results(reference, trial, {name: tensor.double() for name, tensor in given.items()}, backward=backward)
    assert exact is not None
    allowed = TOLERANCE[next(iter(given.values())).dtype]
    for kind, ours, theirs in (("value", got[0], exact[0]), ("gradient", got[1], exact[1])):
        if len(ours) != len(theirs):
            return Difference(f"{kind}s", str(len(ours)), str(len(theirs)))
        for place, (computed, wanted) in enumerate(zip(ours, theirs, strict=True)):
            if different := _difference(computed, wanted, allowed):
                return Difference(f"{kind} {place}", *different)
    return None


def _difference(ours: Tensor | None, wanted: Tensor | None, allowed: float) -> tuple[str, str] | None:
    """Differing actual and expected values; None for a gradient means zeros."""
    if ours is None or wanted is None:
        zeros = all(x is None or not bool(x.count_nonzero()) for x in (ours, wanted))
        return None if zeros else ("None", "one that is not zero") if ours is None else ("not zero", "none")
    if ours.shape != wanted.shape:
        return str(tuple(ours.shape)), f"shape {tuple(wanted.shape)}"
    if not torch.equal(ours.isnan(), wanted.isnan()):
        return "NaN elsewhere", "NaN where the reference has it, and nowhere else"
    if not ours.numel():
        return None
    difference, largest = (float(x.nan_to_num().abs().max().detach()) for x in (ours.double() - wanted, wanted))
    limit = allowed * max(largest, 1e-6)
    return None if difference <= limit else (f"up to {difference:.3g} apart", f"at most {limit:.3g}")
