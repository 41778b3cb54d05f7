"""Whether an optimizer treats every number of a weight by itself, so that each rank can update a part of it."""

from __future__ import annotations

import torch
from finetooth_hooks.protocols import Optimizer
from torch import Tensor, nn

NAME = "model.layers.0.mlp.up_proj.weight"
SIDE = 512
"""Rows and columns of the matrix that is tried: more than the rank that an optimizer of low rank projects onto."""
STEPS = 2


def treats_every_number_by_itself(optimizer: Optimizer) -> bool:
    """Found out by trying: a matrix is moved as its two halves are, and what is kept of it are numbers in its shape."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(SIDE, SIDE, generator=generator)
    gradients = [torch.randn(SIDE, SIDE, generator=generator) for _ in range(STEPS)]
    whole = _moved(optimizer, weight, gradients)
    half = SIDE // 2
    halves = [
        _moved(optimizer, weight[rows], [gradient[rows] for gradient in gradients])
        for rows in (slice(0, half), slice(half, SIDE))
    ]
    if whole is None or halves[0] is None or halves[1] is None:
        return False
    return bool(torch.allclose(whole, torch.cat([halves[0], halves[1]]), rtol=1e-5, atol=1e-8))


def _moved(optimizer: Optimizer, weight: Tensor, gradients: list[Tensor]) -> Tensor | None:
    """The weight after some updates; None where something of another shape is kept of it."""
    parameter = nn.Parameter(weight.clone())
    made: torch.optim.Optimizer = optimizer.create([(NAME, parameter)])
    for gradient in gradients:
        parameter.grad = gradient.clone()
        made.step()
    kept = [value for value in made.state_dict()["state"].get(0, {}).values() if isinstance(value, Tensor)]
    alike = all(value.dim() == 0 or (value.shape == weight.shape and value.is_floating_point()) for value in kept)
    return parameter.detach() if alike else None
