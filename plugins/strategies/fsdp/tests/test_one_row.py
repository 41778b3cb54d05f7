"""Quantised modules whose storage is one row of bytes: the numbers are those of before."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from finetooth_fsdp.one_row import PART, ROW, keep_part, put_in_rows
from finetooth_hooks import PlanError
from finetooth_torchshared.codebook_linear import CodebookLinear
from finetooth_torchshared.grouped_linear import Bits, Grouped, GroupedLinear
from finetooth_torchshared.mxfp4 import FloatsLinear, PackedMxfp4Linear
from finetooth_torchshared.quantised import DequantisingLinear, QuantisedLinear, is_quantised, stored_weights
from finetooth_torchshared.stored_experts import put_stored
from torch import Tensor, nn


def random(*shape: int, high: int = 256) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def grouped(bits: Bits, *, zeros: bool = False, order: bool = False, bias: bool = False) -> GroupedLinear:
    """5 outputs of 24 inputs: an odd number of rows, that no number of ranks divides."""
    scales = torch.linspace(-0.1, 0.2, 15).view(5, 3)
    groups = torch.arange(24).flip(0) // 8 if order else None
    weight = Grouped(random(5, 24, high=1 << bits), scales, scales * 7 if zeros else None, groups, bits)
    return GroupedLinear(weight, torch.linspace(0, 1, 5) if bias else None)


class Whole(DequantisingLinear):
    """A scale of all weights, without dimensions, between tensors of odd sizes."""

    def __init__(self) -> None:
        super().__init__(3, 7)
        self.register_buffer("codes", random(7, 3).to(torch.int8))
        self.register_buffer("scale", torch.tensor(0.37))
        self.register_buffer("shift", torch.linspace(0, 1, 7).bfloat16())

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        return (self.codes.float() * self.scale + self.shift.float()[:, None]).to(dtype)


MODULES: dict[str, Callable[[], QuantisedLinear]] = {
    "4 bits": lambda: grouped(4),
    "8 bits, bias": lambda: grouped(8, zeros=True, bias=True),
    "2 bits, order": lambda: grouped(2, zeros=True, order=True),
    "codebooks": lambda: CodebookLinear(
        random(3, 4, 2).to(torch.int16), torch.linspace(-1, 1, 2 * 16 * 2 * 2).view(2, 16, 2, 2), torch.ones(3)
    ),
    "mxfp4": lambda: PackedMxfp4Linear(random(3, 32), 120 + random(3, 2, high=8)),
    "floats": lambda: FloatsLinear(
        torch.randn(3, 32).to(torch.float8_e4m3fn), torch.rand(3, 1), torch.tensor(0.5)
    ),
    "no dimensions": Whole,
}  # fmt: skip


def passed(module: QuantisedLinear, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Outputs, and the gradient of inputs."""
    inputs = torch.linspace(-1, 1, 4 * module.in_features, dtype=dtype).view(4, -1).requires_grad_()
    outputs: Tensor = module(inputs)
    outputs.square().sum().backward()
    assert inputs.grad is not None
    return outputs.detach(), inputs.grad


@pytest.mark.parametrize("form", MODULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_module_computes_the_same_from_one_row(form: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = MODULES[form]()
    before, weights = passed(module, dtype), stored_weights(module)
    stored = sum(of.nbytes for name, of in module.named_buffers() if name != "bias")
    held = nn.ModuleDict({"inner": module})
    for _ in range(2):  # the second time finds nothing to do
        put_in_rows(held)
        (row,) = module.parameters()
        assert (row.dtype, row.dim(), row.requires_grad) == (torch.uint8, 1, False)
        assert stored <= len(row) < stored + 16 * 4
        assert {name for name, _ in module.named_buffers()} <= {"bias"}
    for of, was in zip(passed(module, dtype), before, strict=True):
        assert torch.equal(of, was)
    assert is_quantised(held) and stored_weights(held) + len(row) == weights
    assert module.qweight is module._parameters[ROW]


@pytest.mark.parametrize("form", MODULES)
def test_a_module_of_which_a_rank_keeps_a_part_computes_the_same(form: str) -> None:
    """Three ranks have a third each, up to the end of the row; a row is gathered once where a module reads it often."""
    parts: list[Tensor] = []
    gathers: list[int] = []

    def gathered(part: Tensor) -> list[Tensor]:
        gathers.append(len(part))
        return parts

    def made() -> QuantisedLinear:
        torch.manual_seed(0)
        return MODULES[form]()

    before, ranks = passed(made(), torch.float32), [made() for _ in range(3)]
    for rank, module in enumerate(ranks):
        keep_part("inner", module, SimpleNamespace(rank=rank, world=3, all_gather=gathered), "cpu")  # type: ignore[arg-type]
        parts.append(vars(module)[PART].part)
        assert not list(module.parameters()) and {name for name, _ in module.named_buffers()} <= {"bias"}
        assert module.qweight is parts[-1]
    for module in ranks:
        for of, was in zip(passed(module, torch.float32), before, strict=True):
            assert torch.equal(of, was)
    assert len(gathers) == 3
    put_in_rows(held := nn.ModuleDict({"inner": ranks[1]}))
    (row,) = held.parameters()
    assert torch.equal(row, torch.cat(parts)[: len(row)]) and 3 * len(parts[0]) < len(row) + 3
    assert len({len(part) for part in parts}) == 1 and PART not in vars(ranks[1])
    for of, was in zip(passed(ranks[1], torch.float32), before, strict=True):
        assert torch.equal(of, was)


def test_experts_compute_the_same_from_one_row() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Parameter(torch.zeros(2, 5, 12))

        def forward(self, states: Tensor) -> Tensor:
            return states @ self.up[0].T + states @ self.up[1].T

    experts = Experts()
    put_stored(experts, {"up": GroupedLinear(Grouped(random(10, 12, high=16), torch.rand(10, 1), None, None, 4))})
    states = torch.linspace(-1, 1, 36).view(3, 12)
    before = experts(states)
    put_in_rows(experts)
    assert [name for name, _ in experts.named_parameters()] == [f"stored_experts.up.stored.{ROW}"]
    assert torch.equal(experts(states), before)


def test_what_has_no_plain_bytes_is_refused() -> None:
    class Library(Tensor):
        pass

    module = Whole()
    module.codes = module.codes.as_subclass(Library)
    with pytest.raises(PlanError, match=r"^scale.strategy: .* 0 \(Whole\) does not store its weight in plain buffers"):
        put_in_rows(nn.Sequential(module))
