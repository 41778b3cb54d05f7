"""Which implementations of `linear_logprob` there are, which of them a device can use, and which is chosen and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from finetooth_kernels import linear_logprob, reference, triton_linear_logprob
from finetooth_kernels.contract import Availability, LinearLogprob


@dataclass(frozen=True)
class Implementation:
    """One way to compute `linear_logprob`; every `function` takes and returns the same.

    Attributes:
        foresees: see `linear_logprob.foresees`; what has no use for `expected` never does.
    """

    name: str
    function: Callable[..., LinearLogprob]
    available: Callable[[torch.device | str, torch.dtype | None], Availability]
    foresees: Callable[..., bool] = field(default=lambda dtype, targets, *, trains_bias: False)


IMPLEMENTATIONS = (
    Implementation("triton", triton_linear_logprob.linear_logprob_triton, triton_linear_logprob.available),
    Implementation(
        "chunked", linear_logprob.linear_logprob, linear_logprob.available, foresees=linear_logprob.foresees
    ),
    Implementation("reference", reference.linear_logprob_reference, reference.available),
)
"""Best first. The reference comes last: it holds the whole logits, in float64."""


@dataclass(frozen=True)
class Choice:
    """The implementation for a device, with a reason that a plan can print."""

    implementation: Implementation
    reason: str


def choose(device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Choice:
    """The first implementation that `device` can use, for inputs of `dtype` if one is given.

    Raises:
        ValueError: if there is none; says why for each.
    """
    refusals: list[str] = []
    for implementation in IMPLEMENTATIONS:
        answer = implementation.available(device, dtype)
        if answer.available:
            return Choice(implementation, "; ".join([*refusals, f"{implementation.name}: {answer.reason}"]))
        refusals.append(f"{implementation.name} not used: {answer.reason}")
    what = f"device {device}" if dtype is None else f"device {device}, {dtype}"
    raise ValueError(f"{what}: no implementation of linear_logprob can run ({'; '.join(refusals)})")
