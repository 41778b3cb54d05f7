"""Which modules hold plain numbers."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

from types import SimpleNamespace  # noqa: E402

from finetooth_hooks.errors import RecipeError  # noqa: E402
from finetooth_hooks.protocols import Stored  # noqa: E402
from finetooth_torchshared.quantised import (  # noqa: E402
    DequantisingLinear,
    QuantisedLinear,
    RowsApart,
    is_quantised,
    quantise,
    reads_as_numbers,
    storable,
)


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


class StoredAsBf16(DequantisingLinear):
    """Stores a weight as bf16."""

    def __init__(self, module: Any) -> None:
        super().__init__(module.in_features, module.out_features, module.bias)
        self.register_buffer("codes", module.weight.detach().bfloat16())

    def dequantised(self, dtype: Any) -> Any:
        return self.codes.to(dtype)


class Counted(RowsApart):
    """Stores a weight as bf16, and says how many outputs are read at a time."""

    def __init__(self, module: Any) -> None:
        super().__init__(module.in_features, module.out_features, module.bias)
        self.register_buffer("codes", module.weight.detach().bfloat16())
        self.read: list[int] = []

    def dequantised_rows(self, first: int, last: int, dtype: Any) -> Any:
        self.read.append(last - first)
        return self.codes[first:last].to(dtype)


QUANTIZER: Any = SimpleNamespace(
    stored=Stored("bf16", 2.0),
    takes=lambda path, shape: True,
    linear=lambda module, device: StoredAsBf16(module).to(device),
    capabilities=frozenset(),
)


def test_what_is_not_finite_is_refused_by_its_path() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[1].weight[2, 3] = float("nan")
    with pytest.raises(RecipeError, match=r"quantization: the weight of 1 holds NaN or infinity, which bf16 cannot"):
        quantise(model, QUANTIZER, "cpu")


def test_the_weight_is_made_anew_for_each_pass_and_held_by_nobody() -> None:
    model = quantise(nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4)), QUANTIZER, "cpu")
    held: list[Any] = []
    rows = torch.randn(3, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def keep(tensor: Any) -> Any:
        held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        given = model(rows)
    assert [tuple(tensor.shape) for tensor in held] == [(3, 8)]  # what tanh gave
    (slope,) = torch.autograd.grad(given.sum(), rows, create_graph=True)
    weights = [model[0].dequantised(torch.float32), model[2].dequantised(torch.float32)]
    inner = torch.tanh(rows @ weights[0].T + model[0].bias)
    torch.testing.assert_close(given, inner @ weights[1].T + model[2].bias)
    torch.testing.assert_close(slope, ((1 - inner**2) * weights[1].sum(0)) @ weights[0])
    (twice,) = torch.autograd.grad(slope.sum(), rows)  # and a second time
    wanted = (-2 * inner * (1 - inner**2) * weights[1].sum(0) * weights[0].sum(1)) @ weights[0]
    torch.testing.assert_close(twice, wanted)


def test_outputs_that_are_stored_apart_are_read_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetooth_torchshared.quantised.PIECE", 60)
    module = nn.Linear(20, 10)
    stored, wanted = Counted(module), module.weight.detach().bfloat16().float()
    assert torch.equal(stored.dequantised(torch.float32), wanted)
    assert stored.read == [3, 3, 3, 1]
    numbers = torch.zeros(12, 20)
    stored.write(numbers[1:11])
    assert torch.equal(numbers[1:11], wanted) and not numbers[0].any() and not numbers[11].any()
    rows = torch.randn(4, 20)
    torch.testing.assert_close(stored(rows), rows @ wanted.T + module.bias)
    monkeypatch.setattr("finetooth_torchshared.quantised.PIECE", 5)  # less than a row
    assert torch.equal(stored.dequantised(torch.float32), wanted)


class Mamba(nn.Module):  # type: ignore[misc, name-defined]
    """As transformers' Mamba 2 layers: a kernel gets the weight of `out_proj`, and nobody calls the module."""

    def __init__(self) -> None:
        super().__init__()
        self.A_log, self.D = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
        self.in_proj, self.out_proj = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, hidden: Any) -> Any:
        return self.in_proj(hidden) @ self.out_proj.weight.T


class Delta(Mamba):
    """As a gated delta net, which has no `D` and calls its `out_proj`."""

    def __init__(self) -> None:
        super().__init__()
        del self.D


def test_a_weight_that_a_layer_only_reads_stays_as_it_is() -> None:
    model = nn.ModuleDict({"mamba": Mamba(), "delta": Delta()})
    stored = storable(model)
    quantise(model, QUANTIZER, "cpu")
    assert type(model["mamba"].out_proj) is nn.Linear and model["mamba"](torch.ones(1, 8)).shape == (1, 8)
    replaced = {path for path, module in model.named_modules() if isinstance(module, QuantisedLinear)}
    assert replaced == {"mamba.in_proj", "delta.in_proj", "delta.out_proj"} == set(stored)
