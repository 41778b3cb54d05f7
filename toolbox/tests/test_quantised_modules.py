"""Which modules hold plain numbers."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

from finetooth_toolbox.torch.quantised import QuantisedLinear, is_quantised, reads_as_numbers  # noqa: E402


class Packed(nn.Module):  # type: ignore[misc, name-defined]
    """As libraries of packed formats have it: no linear module by its class, and no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 8, 4
        self.register_buffer("qweight", torch.zeros(1, 4, dtype=torch.int32))


class Bytes(torch.Tensor):  # type: ignore[misc, name-defined]
    """A tensor of a library: it says bf16, and holds something else."""


Bytes.__module__ = "quantising_library.tensors"


def of(dtype: Any) -> Any:
    module = nn.Linear(8, 4, bias=False)
    module.weight = nn.Parameter(torch.zeros(4, 8, dtype=dtype), requires_grad=False)
    return module


def of_a_library() -> Any:
    module = nn.Linear(8, 4, bias=False)
    module.weight = nn.Parameter(torch.zeros(4, 8).as_subclass(Bytes), requires_grad=False)
    return module


def without_weight() -> Any:
    module = nn.Linear(8, 4, bias=False)
    del module.weight
    module.register_buffer("weight_packed", torch.zeros(4, 1, dtype=torch.int32))
    return module


@pytest.mark.parametrize(
    "module",
    [Packed(), of(torch.float8_e4m3fn), of(torch.uint8), of(torch.int8), of_a_library(), without_weight(),
     QuantisedLinear(8, 4)],
    ids=["packed", "fp8", "uint8", "int8", "a library's tensor", "no weight", "ours"],
)  # fmt: skip
def test_quantised(module: Any) -> None:
    assert not reads_as_numbers(module)
    assert is_quantised(nn.ModuleDict({"plain": nn.Linear(8, 4), "other": module}))


def test_experts_held_as_one_weight() -> None:
    experts = nn.Module()
    experts.gate_up_proj_blocks = nn.Parameter(torch.zeros(2, 4, 4, dtype=torch.uint8), requires_grad=False)
    assert is_quantised(nn.ModuleList([experts]))


def test_plain() -> None:
    modules = [nn.Linear(8, 4), of(torch.bfloat16), of(torch.float16), nn.Embedding(4, 8), nn.LayerNorm(8)]
    assert all(reads_as_numbers(module) for module in modules)
    assert not is_quantised(nn.ModuleList(modules))
