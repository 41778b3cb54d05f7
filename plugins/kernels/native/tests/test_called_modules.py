"""Groups of the stream decoder whose modules are called: those that multiply in 8 bits, with an adapter over them."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from typing import Any

import pytest
import torch
from finetooth_kernels.fp8 import E4M3, Rounded, fp8_linear, rounded
from finetooth_kernels.reference_decoder import OPERATIONS
from finetooth_native.stream_decoder import Group
from finetooth_torchshared.float8 import multiply_in_fp8
from torch import Tensor, nn

ROWS, INPUTS = 13, 20


class Added(nn.Module):
    """A low-rank addition that is summed with the product before it is rounded, as a LoRA layer's."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base
        self.a, self.b = (nn.Parameter(torch.randn(*shape)) for shape in ((2, INPUTS), (base.out_features, 2)))

    def forward(self, x: Tensor) -> Tensor:
        added = x @ self.a.to(x.dtype).t() @ self.b.to(x.dtype).t()
        summed: Tensor = self.base.plus(x, added)
        return summed


def in_8_bits(trains: str) -> list[nn.Module]:
    torch.manual_seed(0)
    linears = [nn.Linear(INPUTS, outputs, bias=outputs == 7, dtype=torch.bfloat16) for outputs in (12, 7, 5)]
    multiply_in_fp8(linears, fp8_linear)
    for linear in linears:
        linear.requires_grad_(trains == "full")
    return [Added(linears[0]), linears[1], Added(linears[2])] if trains == "lora" else list(linears)


def test_what_several_modules_read_is_rounded_once() -> None:
    rounds: list[tuple[Any, Rounded]] = []

    def noted(t: Tensor, dtype: Any, **named: Any) -> Rounded:
        rounds.append((dtype, rounded(t, dtype, **named)))
        return rounds[-1][1]

    modules: list[Any] = in_8_bits("full")
    for module in modules:
        module.compute = partial(fp8_linear, rounding=noted)
    x = normed(torch.randn(ROWS, INPUTS))
    alone = torch.cat([module(x) for module in modules], -1)
    assert [dtype for dtype, _ in rounds] == [E4M3] * 6  # the rows and a weight, three times
    rounds.clear()
    together = Group(modules, lambda module: None, OPERATIONS)(x)
    assert torch.equal(together, alone) and len(rounds) == 4
    joined: Any = together.grad_fn
    nodes = [view.next_functions[0][0] for view, _ in joined.next_functions]
    kept = {saved.data_ptr() for node in nodes for saved in node.saved_tensors if saved.dtype == E4M3}
    assert kept == {rounds[0][1].values.data_ptr()}
    rounds.clear()
    modules[0](x)  # and not for longer than the group is called
    assert len(rounds) == 2


def normed(h: Tensor) -> Tensor:
    return (h * h.square().mean(-1, keepdim=True).add(1e-6).rsqrt()).to(torch.bfloat16)


def slopes(modules: list[nn.Module], compute: Any) -> tuple[Tensor, list[Tensor]]:
    """The result of random states, and the gradients of what trains and of the states."""
    h = torch.randn(ROWS, INPUTS, generator=torch.Generator().manual_seed(1)).requires_grad_()
    y = compute(h)
    incoming = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)
    leaves = [h, *(p for module in modules for p in module.parameters() if p.requires_grad)]
    return y.detach(), list(torch.autograd.grad(y, leaves, incoming))


@pytest.mark.parametrize("trains", ["lora", "full"])
@pytest.mark.parametrize("makes_again", [True, False])
def test_a_group_computes_what_its_modules_do_to_the_bit(trains: str, makes_again: bool) -> None:
    modules = in_8_bits(trains)
    group = Group(modules, lambda module: None, OPERATIONS)

    def called(h: Tensor) -> Tensor:
        return torch.cat([module(normed(h)) for module in modules], -1)

    def grouped(h: Tensor) -> Tensor:
        return group(normed(h), (normed, (h,)) if makes_again else None)

    (wanted, exact), (y, got) = slopes(modules, called), slopes(modules, grouped)
    assert torch.equal(y, wanted) and y.dtype == torch.bfloat16
    for slope, expected in zip(got[1:], exact[1:], strict=True):
        assert torch.equal(slope, expected)
    # those of the states are sums of three, which are rounded to bf16 in either order
    torch.testing.assert_close(got[0], exact[0], rtol=2e-2, atol=2e-2 * float(exact[0].abs().max()))
    base = torch.randn(ROWS, 24)
    assert torch.equal(group(normed(base[:, :INPUTS]), base_no=base), base + called(base[:, :INPUTS]))
    assert group.parts() is None  # sampling calls them too


@pytest.mark.parametrize("trains", ["lora", "full"])
def test_what_the_modules_read_is_made_again_and_not_kept(trains: str) -> None:
    group, rows = Group(in_8_bits(trains), lambda module: None, OPERATIONS), []

    def make(h: Tensor) -> Tensor:
        made = normed(h)
        rows.append(weakref.ref(made))
        return made

    h = torch.randn(ROWS, INPUTS)
    given = make(h)
    y = group(given, (make, (h,)))
    del given
    gc.collect()
    assert rows[0]() is None
    y.sum().backward()
    # the A of both additions multiply with the rows, which are made once; a weight that trains has them in 8 bits
    assert len(rows) == (2 if trains == "lora" else 1) and all(of() is None for of in rows)
