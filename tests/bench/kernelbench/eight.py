"""Linear layers in 8-bit floating point next to bf16: time, memory, and how far each is from float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from finetooth_kernels.fp8 import fp8_linear
from finetooth_triton.eight_bits import fp8_linear_triton
from torch import Tensor

from kernelbench.turns import Row, in_turns, print_row

Linear = Callable[[Tensor, Tensor], Tensor]
Layer = tuple[int, int, int]
"""Rows, inputs, outputs."""
LAYERS: tuple[Layer, ...] = ((16_384, 4_096, 4_096), (16_384, 4_096, 14_336))
CPU_LAYERS: tuple[Layer, ...] = ((33, 48, 24),)
LARGEST = 0.1
"""How far a product in 8 bits may be from float64, as a share of the norm."""
ROWS = 256
"""Of the rows, how many are compared with float64."""


def passes(linear: Linear, x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Result and gradient of the inputs."""
    leaf = x.detach().requires_grad_()
    y = linear(leaf, weight)
    return y.detach(), torch.autograd.grad(y, leaf, grad)[0]


def layer_rows(
    layers: tuple[Layer, ...], device: str, dtype: torch.dtype, warm_up: int, timed: int
) -> Iterator[tuple[Row, list[str]]]:  # fmt: skip
    """Forward and backward of the inputs of every layer under a frozen weight, and what is too far from float64."""
    ways: dict[str, Linear] = {"torch": torch.nn.functional.linear, "ours, torch operations": fp8_linear}
    if device != "cpu":
        ways["ours, kernels"] = fp8_linear_triton
    for rows, inputs, outputs in layers:
        generator = torch.Generator(device).manual_seed(0)
        normal = partial(torch.randn, generator=generator, device=device, dtype=dtype)
        x, weight, grad = normal(rows, inputs), normal(outputs, inputs).mul_(inputs**-0.5), normal(rows, outputs)
        works = {who: partial(passes, way, x, weight, grad) for who, way in ways.items()}
        measured = in_turns(dict(works), device, warm_up, timed)
        exact = (x[:ROWS].double() @ weight.double().t(), grad[:ROWS].double() @ weight.double())
        far = []
        for who, of in measured.items():
            if "not measured" not in of:
                apart = [float((a[:ROWS] - b).norm() / b.norm()) for a, b in zip(works[who](), exact, strict=True)]
                of["distance"] = " and ".join(f"{each:.1e}" for each in apart)
                far += [f"{who}: {of['distance']} from float64"] if not max(apart) < LARGEST else []
        row = {"layer": f"{rows:,} x {inputs:,} x {outputs:,}", "contenders": measured}
        print_row(row)
        yield row, far
