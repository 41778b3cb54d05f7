"""Products of matrices in torch, against float64."""

from __future__ import annotations

import pytest
import torch
from finetooth_kernels import mm
from torch import Tensor

BF16 = torch.bfloat16


def of(*shape: int, turned: bool = False) -> Tensor:
    """Random numbers; turned: with columns next to each other."""
    numbers = torch.randn(shape[::-1] if turned else shape, generator=torch.Generator().manual_seed(sum(shape)))
    return numbers.to(BF16).t() if turned else numbers.to(BF16)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("extra", ["nothing", "bias", "base", "wide base"])
def test_two_products_as_one_round_once(turned: bool, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Joined as on a GPU: nearer to the exact sum than two products that round after each other."""
    left, right, more = of(40, 24), of(24, 56, turned=turned), (of(40, 8), of(8, 56))
    bias = of(56) if extra == "bias" else None
    base = of(40, 56) if extra == "base" else of(40, 56).float() if extra == "wide base" else None
    exact = left.double() @ right.double() + more[0].double() @ more[1].double()
    exact = exact + (0 if bias is None else bias.double()) + (0 if base is None else base.double())

    def error(joined: bool) -> float:
        monkeypatch.setattr(mm, "_joins", lambda *_: joined)
        y = mm.mm(left, right, more=more, bias_o=bias, base_no=base)
        assert y.dtype == (BF16 if base is None else base.dtype)
        return float((y.double() - exact).norm() / exact.norm())

    once, twice = error(True), error(False)
    assert once <= 2**-9
    assert once < twice


def test_products_are_joined_where_that_moves_fewer_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model of 8 billion parameters with 16,384 positions at rank 16, on a pretended GPU."""

    class Shape:
        device, dtype = torch.device("cuda"), BF16

        def __init__(self, *shape: int, dtype: torch.dtype = BF16) -> None:
            self.shape, self.dtype = shape, dtype

        def element_size(self) -> int:
            return self.dtype.itemsize

    def joins(rows: int, inner: int, outputs: int, rank: int, base: object = None) -> bool:
        return mm._joins(Shape(rows, inner), Shape(inner, outputs), Shape(rows, rank), base)  # type: ignore[arg-type]

    wide = Shape(16384, 4096, dtype=torch.float32)
    assert joins(16384, 4096, 28672, 32)  # gate and up
    assert joins(16384, 4096, 4096, 16, wide)  # output of attention, onto the residual stream
    assert joins(16384, 4096, 14336, 16)  # the gradient of what the down projection reads
    assert not joins(16384, 14336, 4096, 16, wide)  # the down projection
    assert not joins(64, 4096, 28672, 32)  # few rows: the weight is most of what would be moved
    assert not joins(16384, 4096, 28672, 33)  # an inner side of odd length has no fast product
    monkeypatch.setattr(Shape, "device", torch.device("cpu"))
    assert not joins(16384, 4096, 28672, 32)
