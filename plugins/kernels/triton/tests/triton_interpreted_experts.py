"""Products of experts with LoRA by interpreted Triton kernels, both forms, against a loop over experts in float64.

Not collected by itself: TRITON_INTERPRET=1 must be set before Triton is imported. test_triton_interpreter.py runs it.
"""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any

import pytest
import torch
from finetooth_triton import gpu, grouped, layers
from finetooth_triton.grouped import grouped_matmul_triton

assert os.environ.get("TRITON_INTERPRET") == "1", "run by test_triton_interpreter.py"

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}
SPREAD, ONE, EDGES = [0, 5, 5, 40, 41], [0, 0, 129, 129], [127, 127, 255, 384]
"""Ends of groups: some empty, all rows in one, and sizes around those of tiles."""
CASES = [(SPREAD, 127, 129, 3, 32), (ONE, 128, 127, 16, 64), (EDGES, 48, 33, 8, 128), (SPREAD, 40, 1025, 20, 64),
         ([1025], 129, 24, 4, 128)]  # fmt: skip
"""Ends, depth, width, rank, and rows and columns of a tile."""


def loop(t: dict[str, torch.Tensor], ends: list[int], dy: torch.Tensor) -> dict[str, torch.Tensor]:
    """The value and all gradients, expert by expert."""
    x, weight, a, b = (tensor.detach().double() for tensor in t.values())
    found = {"y": dy.double().clone(), **{name: torch.zeros_like(tensor.double()) for name, tensor in t.items()}}
    for e, (first, last) in enumerate(pairwise([0, *ends])):
        rows, slopes = x[first:last], dy[first:last].double()
        found["y"][first:last] = rows @ weight[e] + 0.7 * (rows @ a[e]) @ b[e]
        found["x"][first:last] = slopes @ weight[e].T + 0.7 * (slopes @ b[e].T) @ a[e].T
        found["weight"][e] = rows.T @ slopes
        found["a"][e] = 0.7 * rows.T @ (slopes @ b[e].T)
        found["b"][e] = 0.7 * (rows @ a[e]).T @ slopes
    return found


@pytest.mark.parametrize("form", ["fused", "split"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES, ids=[f"{len(e)} groups, {d} x {o}, rank {r}" for e, d, o, r, _ in CASES])
def test_values_and_gradients_are_those_of_a_loop(
    monkeypatch: pytest.MonkeyPatch, case: Any, dtype: torch.dtype, form: Any
) -> None:
    ends, depth, width, rank, tile = case
    monkeypatch.setattr(gpu, "tiles_for", lambda dtype, device: gpu.Tiles(tile, tile, min(tile, 64), 8, 2))
    monkeypatch.setattr(layers, "runs_on", lambda device: True)
    fused: list[int] = []
    own = grouped._added
    monkeypatch.setattr(grouped, "_added", lambda *given: fused.append(1) or own(*given))
    draw = torch.Generator().manual_seed(depth)
    sizes = {"x": (ends[-1], depth), "weight": (len(ends), width, depth), "a": (len(ends), depth, rank),
             "b": (len(ends), rank, width)}  # fmt: skip
    t = {name: (torch.randn(size, generator=draw) / size[-1] ** 0.5).to(dtype) for name, size in sizes.items()}
    t["weight"] = t["weight"].mT  # as linear layers hold it
    for tensor in t.values():
        tensor.requires_grad_()
    dy = torch.randn((ends[-1], width), generator=draw).to(dtype)
    y = grouped_matmul_triton(
        t["x"], t["weight"], torch.tensor(ends, dtype=torch.int32), (t["a"], t["b"], 0.7), form=form
    )
    y.backward(dy)
    assert len(fused) == (2 if form == "fused" else 0)
    for name, wanted in loop(t, ends, dy).items():
        got: Any = y if name == "y" else t[name].grad
        off = (got.detach().double() - wanted).abs().max() / wanted.abs().max()
        assert got.dtype == dtype and off < TOLERANCE[dtype], (name, float(off))
