"""Experts of a mixture with and without LoRA, as models that people train have them: products of groups, a gated
activation between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import torch
from finetooth_kernels.grouped import Form, LowRankAddition, grouped_matmul
from finetooth_triton.grouped import grouped_matmul_triton
from torch import Tensor
from torch.nn.functional import silu

from kernelbench.turns import Row, in_turns, print_row

Multiply = Callable[[Tensor, Tensor, Tensor, "LowRankAddition | None"], Tensor]
Mixture = tuple[int, int, int, int]
"""Experts, numbers of a row, of an expert's middle, and experts that a row goes through."""
MIXTURES: dict[str, Mixture] = {
    "Qwen3.5-35B-A3B": (256, 2048, 512, 8),
    "Qwen3-30B-A3B": (128, 2048, 768, 8),
    "OLMoE": (64, 2048, 1024, 8),
    "Mixtral": (8, 4096, 14336, 2),
}
CPU_MIXTURES: dict[str, Mixture] = {"tiny": (4, 32, 24, 2)}
RANKS, CPU_RANKS = (16, 32, 64), (4,)
TOKENS, CPU_TOKENS = 2048, 64


def one_by_one(x_nd: Tensor, weight_gdo: Tensor, ends_g: Tensor, addition: LowRankAddition | None) -> Tensor:
    """What plain torch does: a product for each expert, and two more for its addition."""
    parts = []
    for group, (first, last) in enumerate(pairwise([0, *ends_g.tolist()])):
        rows = x_nd[first:last]
        part = rows @ weight_gdo[group]
        if addition is not None:
            part = part + addition[2] * (rows @ addition[0][group]) @ addition[1][group]
        parts.append(part)
    return torch.cat(parts)


class Layer:
    """The experts of one layer with random weights, over rows that a random router sorted.

    Args:
        rank: of the additions; 0: there are none.
    """

    def __init__(self, mixture: Mixture, tokens: int, rank: int, device: str, dtype: torch.dtype) -> None:
        count, width, middle, active = mixture
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            drawn = torch.randn(shape, generator=generator, device=device, dtype=dtype)
            return drawn.mul_(shape[-2] ** -0.5)

        chosen = torch.rand((tokens, count), generator=generator, device=device).topk(active).indices
        self.ends = chosen.flatten().bincount(minlength=count).cumsum(0).int()
        self.x = normal(tokens * active, width).requires_grad_()
        sizes = (width, 2 * middle), (middle, width)
        self.weights = [normal(count, *size) for size in sizes]
        self.factors = [(normal(count, a, rank), normal(count, rank, b)) for a, b in sizes] if rank else [None, None]
        self.trained = [self.x, *(f.requires_grad_() for pair in self.factors if pair is not None for f in pair)]

    def forward(self, multiply: Multiply) -> Tensor:
        """The rows through their experts."""
        (gate_up, down), (first, second) = self.weights, self.factors
        gate, up = multiply(self.x, gate_up, self.ends, first and (*first, 0.5)).chunk(2, -1)
        return multiply(silu(gate) * up, down, self.ends, second and (*second, 0.5))

    def scored(self, multiply: Multiply) -> Tensor:
        """The same without a graph."""
        with torch.no_grad():
            return self.forward(multiply)

    def step(self, multiply: Multiply) -> Tensor:
        """Forward and backward; the gradient of the rows."""
        return torch.autograd.grad(self.forward(multiply).float().square().sum(), self.trained)[0]


def expert_rows(
    mixtures: dict[str, Mixture], ranks: tuple[int, ...], tokens: int, device: str, dtype: torch.dtype, warm_up: int,
    timed: int,
) -> Iterator[Row]:  # fmt: skip
    """Every mixture without additions and with those of each rank."""
    ways: dict[str, Multiply] = {"torch, one by one": one_by_one, "torch, groups": grouped_matmul}
    if device != "cpu":
        forms: tuple[Form, ...] = ("fused", "split")
        ways |= {f"triton, {form}": partial(grouped_matmul_triton, form=form) for form in forms}
    for name, mixture in mixtures.items():
        for rank in (0, *ranks):
            layer = Layer(mixture, tokens, rank, device, dtype)
            for what, work in (("forward", layer.scored), ("forward and backward", layer.step)):
                works = {way: partial(work, multiply) for way, multiply in ways.items()}
                row: Row = {"mixture": name, "rank": rank, "what": what}
                row["contenders"] = in_turns(dict(works), device, warm_up, timed)
                exact = work(one_by_one)
                for way in works:
                    if "not measured" not in row["contenders"][way]:
                        apart = (work(ways[way]) - exact).abs().max() / exact.abs().max()
                        row["contenders"][way]["largest_difference"] = float(f"{float(apart):.1e}")
                print_row(row)
                yield row
