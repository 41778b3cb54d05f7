"""Whether an optimizer can work on a part of its parameters: found out by trying."""

from __future__ import annotations

import torch
from finetooth_hooks import PlanError
from finetooth_hooks.protocols import Optimizer
from torch import Tensor, nn

SHAPE = (64, 128)
"""Of the parameter that is tried: large enough for the optimizers that keep small ones in another way."""
STEPS = 3
UNFIT = ("averages", "in_backward", "in_turn", "masterless")
"""Capabilities of optimizers that need every weight at every rank, or make the update themselves."""


def check_suitable(factory: Optimizer) -> None:
    """ZeRO lays the parameters of a group end to end, and gives each rank a part of that row. An optimizer must come
    to the same numbers on it as on whole parameters, and keep its state as numbers for each weight.

    Raises:
        PlanError: it does not.
    """
    unfit = sorted(set(UNFIT) & set(factory.capabilities))
    reason = f"it has the capability {unfit[0]}" if unfit else _difference(factory)
    if reason:
        raise PlanError(
            f"scale.strategy: deepspeed gives each rank a part of the weights, which this optimizer cannot update: "
            f"{reason}",
            action="set optimizer: adamw, or scale.strategy: ddp",
        )


def _difference(factory: Optimizer) -> str:
    generator = torch.Generator().manual_seed(0)
    values, *gradients = (torch.randn(SHAPE, generator=generator) for _ in range(1 + STEPS))
    try:
        whole, _ = _updated(factory, values, gradients, slice(None))
        half = slice(0, values.numel() // 2)
        part, state = _updated(factory, values, gradients, half)
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
        return f"on a part it fails with {type(error).__name__}: {error}"
    if not torch.allclose(whole[half], part, rtol=1e-6, atol=1e-7):
        return "a weight's update depends on the other weights of its matrix"
    kept = [key for key, value in state.items() if not isinstance(value, Tensor | int | float)]
    kept += [key for key, value in state.items() if isinstance(value, Tensor) and value.shape not in ((), part.shape)]
    return f"{kept[0]!r} of its state is not a number for each weight" if kept else ""


def _updated(
    factory: Optimizer, values: Tensor, gradients: list[Tensor], part: slice
) -> tuple[Tensor, dict[str, object]]:
    """A parameter after some updates, in one row, and its state; `part` is what the optimizer has of it."""
    optimizer = factory.create([("layer.weight", nn.Parameter(values.clone()))])
    ((group),) = optimizer.param_groups
    row = nn.Parameter(values.flatten()[part].clone()) if part.stop else group["params"][0]
    group["params"] = [row]
    for gradient in gradients:
        row.grad = gradient.flatten()[part].clone().view_as(row)
        optimizer.step()
    return row.detach().flatten(), dict(optimizer.state[row])
