"""The gated activation of a feed-forward block (Shazeer, 2020, arXiv:2002.05202), forward and backward.

    y = act(gate) * up

Kept for backward: gate and up, which stand side by side in one tensor as one matrix product made them.
Compiled kernels stay in float32 between reading and writing; the torch operations here round
the activation to the dtype before they multiply.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from finetooth_kernels.autograd import apply, once_differentiable
from finetooth_kernels.compiled import NOTHING, Compiled, Library

__all__ = ["ACTIVATIONS", "activate", "gated"]

ACTIVATIONS = ("silu", "gelu_tanh", "gelu")


def gated(gate_up_nf: Tensor, activation: str = "silu", *, compiled: Compiled = NOTHING) -> Tensor:
    """The activated gate times up.

    Args:
        gate_up_nf: (N, 2 F), gate first.
        activation: of `ACTIVATIONS`.

    Returns:
        (N, F) in the same dtype.

    Raises:
        ValueError: an activation it does not know.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is unknown; there are {', '.join(ACTIVATIONS)}")
    return apply(_Gated, gate_up_nf, activation, compiled)  # type: ignore[no-any-return]


def activate(gate: Tensor, activation: str) -> Tensor:
    """The activation of `ACTIVATIONS` alone."""
    if activation == "silu":
        return functional.silu(gate)
    return functional.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none")


def _activate_backward(grad: Tensor, gate: Tensor, activation: str, out: Tensor) -> None:
    if activation == "silu":
        torch.ops.aten.silu_backward.grad_input(grad, gate, grad_input=out)
    else:
        approximate = "tanh" if activation == "gelu_tanh" else "none"
        torch.ops.aten.gelu_backward.grad_input(grad, gate, approximate=approximate, grad_input=out)


def _kernels(compiled: Compiled, gate_up_nf: Tensor, *rest: Tensor) -> Library | None:
    if gate_up_nf.dim() != 2 or gate_up_nf.shape[1] % 2:
        return None
    library: Library | None = compiled.library_for(gate_up_nf, *rest)
    return library


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up_nf: Tensor, activation: str, compiled: Compiled) -> Tensor:
        ctx.activation, ctx.compiled = activation, compiled
        ctx.save_for_backward(gate_up_nf)
        kernels = _kernels(compiled, gate_up_nf)
        if kernels is not None:
            return kernels.gated(gate_up_nf, activation)
        gate, up = gate_up_nf.chunk(2, -1)
        return activate(gate, activation).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nf: Tensor) -> tuple[Tensor | None, ...]:
        (gate_up,) = ctx.saved_tensors
        kernels = _kernels(ctx.compiled, gate_up, grad_nf)
        if kernels is not None:
            return kernels.gated_backward(grad_nf, gate_up, ctx.activation), None, None
        gate, up = gate_up.chunk(2, -1)
        d_gate_up = torch.empty_like(gate_up)
        d_gate, d_up = d_gate_up.chunk(2, -1)
        torch.mul(grad_nf, activate(gate, ctx.activation), out=d_up)
        _activate_backward(grad_nf * up, gate, ctx.activation, d_gate)
        return d_gate_up, None, None
