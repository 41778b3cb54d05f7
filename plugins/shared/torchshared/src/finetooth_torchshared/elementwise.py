"""Whether an optimizer treats every number of a weight by itself, so that each rank can update a part of it; or at
least every weight, so that each rank can update some layers."""

from __future__ import annotations

import torch
from finetooth_hooks.protocols import Optimizer
from torch import Tensor, nn

NAME = "model.layers.0.mlp.up_proj.weight"
SIDE = 512
"""Rows and columns of the matrix that is tried: more than the rank that an optimizer of low rank projects onto."""
STEPS = 8
SIZE = 1e-3
"""Size of the weights: rounding must not lose the first steps of an optimizer that finds its step size."""


def obstacle_to_parts(optimizer: Optimizer) -> str:
    """Why it cannot update a part of a weight; empty if it can.

    Found out by trying: half of a matrix, laid end to end, is moved as it is in the whole matrix, and what is kept of
    it are numbers in its shape. The gradients of that half point one way in all steps, those of the other to and fro,
    so that what is estimated over all weights is another number of the half (Prodigy's step size). A list of names
    would be wrong for the next plugin.
    """
    generator = torch.Generator().manual_seed(0)
    values, slope = (torch.randn(SIDE, SIDE, generator=generator) for _ in range(2))
    values *= SIZE
    back = slope.clone()
    back[SIDE // 2 :] *= -1
    gradients = [(back if step % 2 else slope) * (1 + step / STEPS) for step in range(STEPS)]
    half = slice(0, values.numel() // 2)
    try:
        whole, _ = _updated(optimizer, values, gradients, None)
        part, state = _updated(optimizer, values, gradients, half)
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
        return f"on a part it fails with {type(error).__name__}: {error}"
    if not _same_steps(whole[half], part, values.flatten()[half]):
        return "a weight's update depends on the other weights of its matrix"
    for key, value in state.items():
        shaped = isinstance(value, Tensor) and value.shape == part.shape and value.is_floating_point()
        if not shaped and not (isinstance(value, Tensor) and value.dim() == 0) and not isinstance(value, int | float):
            return f"{key!r} of its state is not a number for each weight"
    return ""


def obstacle_to_layers(optimizer: Optimizer) -> str:
    """Why it cannot update a layer where the others are at other ranks, on the device `meta`; empty if it can. Found
    out by trying, as above."""
    generator = torch.Generator().manual_seed(0)
    values, slope = (SIZE * torch.randn(SIDE, SIDE, generator=generator), torch.randn(SIDE, SIDE, generator=generator))

    def updated(other: Tensor) -> Tensor:
        weights = [nn.Parameter(values.clone()), nn.Parameter(other)]
        names = (NAME, NAME.replace("0", "1"))
        made: torch.optim.Optimizer = optimizer.create(list(zip(names, weights, strict=True)))
        for step in range(STEPS):
            weights[0].grad = slope * (1 + step / STEPS)
            weights[1].grad = None if other.is_meta else slope * (-1) ** step
            made.step()
        return weights[0].detach()

    try:
        alike = _same_steps(updated(values.clone()), updated(values.to("meta")), values)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        return f"without them it fails with {type(error).__name__}: {error}"
    return "" if alike else "a weight's update depends on those of other layers"


def _same_steps(left: Tensor, right: Tensor, before: Tensor) -> bool:
    """Whether two ways moved the weights alike but for rounding: kernels that update all weights at once, and those
    that update one, round apart."""
    rounding = 1e-4 * float((left - before).abs().max()) + 1e-6 * float(before.abs().max())
    return bool((left - right).abs().max() <= rounding)


def _updated(
    factory: Optimizer, values: Tensor, gradients: list[Tensor], part: slice | None
) -> tuple[Tensor, dict[str, object]]:
    """A weight after some updates, laid end to end, and its state; `part` is what the optimizer has of it."""
    optimizer: torch.optim.Optimizer = factory.create([(NAME, nn.Parameter(values.clone()))])
    ((group),) = optimizer.param_groups
    if part is not None:
        group["params"] = [nn.Parameter(values.flatten()[part].clone())]
    ((weight),) = group["params"]
    for gradient in gradients:
        weight.grad = gradient.clone() if part is None else gradient.flatten()[part].clone()
        optimizer.step()
    return weight.detach().flatten(), dict(optimizer.state[weight])
