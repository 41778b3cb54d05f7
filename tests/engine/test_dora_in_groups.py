"""DoRA in groups of linear modules, as the stream decoder computes them, against peft's own layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from finetooth_kit import FakeContext, entries_of
from finetooth_kit.torch_request import FACTS, TinyLlamaLoader

torch = pytest.importorskip("torch")
pytest.importorskip("finetooth_lora")

GROUPS = {"queries, keys and values": ("q_proj", "k_proj", "v_proj"), "only some have it": ("k_proj", "v_proj")}


def adapted(tmp_path: Any, precision: str, targets: list[str]) -> tuple[Any, Any]:
    """A model whose layers have DoRA and are no longer what they began as, and its adapter."""
    entries = [entry for entry in entries_of("finetooth_lora.plugin") if entry.kind == "adapter"]
    options = {"name": "lora", "rank": 4, "dora": True, "targets": targets}
    adapter = FakeContext(tmp_path, entries=tuple(entries)).build("adapter", options)
    model = TinyLlamaLoader().load("tiny", framework="torch", precision=precision, device="cpu")
    model = adapter.apply(model, FACTS, np.random.default_rng(0))
    draw = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            with torch.no_grad():
                parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.2)
            parameter.data = parameter.data.to(next(model.parameters()).dtype)
    return model, adapter


@pytest.mark.parametrize(("precision", "allowed"), [("fp64", 1e-9), ("fp32", 1e-5), ("bf16", 3e-2)])
@pytest.mark.parametrize("of", list(GROUPS))
def test_a_group_computes_what_pefts_layers_compute(of: str, precision: str, allowed: float, tmp_path: Any) -> None:
    """Values and gradients; peft's are taken in float64."""
    from finetooth_native.stream_decoder import Group
    from finetooth_torch.compute import TORCH
    from peft.tuners.lora.dora import DoraLinearLayer

    found = []
    for ours in (True, False):
        model, adapter = adapted(tmp_path, precision, ["q_proj", "v_proj"])
        model = model if ours else model.to(torch.float64)
        attention = model.model.layers[0].self_attn
        modules = [getattr(attention, name) for name in GROUPS[of]]
        x = torch.randn(11, FACTS.hidden_size, generator=torch.Generator().manual_seed(2))
        x = x.to(next(model.parameters())).requires_grad_()
        if ours:
            group = Group(modules, adapter.low_rank, TORCH)
            assert group._known() is not None
            y = group(x)
        else:
            for layer in [module for module in model.modules() if isinstance(module, DoraLinearLayer)]:
                layer.__class__ = DoraLinearLayer
            y = torch.cat([module(x) for module in modules], -1)
        trained = [p for module in modules for p in module.parameters() if p.requires_grad]
        found.append((y, *torch.autograd.grad(y.square().sum(), [x, *trained])))
    assert len(found[0]) == len(found[1]) >= 5
    for got, exact in zip(*found, strict=True):
        assert float(((got.double() - exact).norm() / exact.norm()).detach()) < allowed


def test_adapters_of_rows_are_not_added_to_dora(tmp_path: Any) -> None:
    """Rows with an adapter of their own would be multiplied by the lengths as well."""
    from finetooth_hooks.protocols import LowRank
    from finetooth_native.stream_decoder import Group
    from finetooth_torch.compute import TORCH

    model, adapter = adapted(tmp_path, "fp32", ["q_proj"])
    group = Group([model.model.layers[0].self_attn.q_proj], adapter.low_rank, TORCH)
    assert group.parts(lambda module: LowRank(module.base_layer)) is None


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", 1e-6), ("bf16", 1e-2)])
def test_sampling_measures_lengths_once_and_computes_the_same(
    precision: str, allowed: float, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetooth_kernels import low_rank_linear
    from finetooth_native.stream_decoder import Group
    from finetooth_torch.compute import TORCH
    from finetooth_torch.generation.packed_layers import PackedGroup, packed

    model, adapter = adapted(tmp_path, precision, ["q_proj", "v_proj"])
    attention = model.model.layers[0].self_attn
    attention.k_proj.bias = torch.nn.Parameter(torch.arange(8.0).to(attention.k_proj.weight))
    group = Group([attention.q_proj, attention.k_proj, attention.v_proj], adapter.low_rank, TORCH)
    fast = packed(group)
    assert isinstance(fast, PackedGroup)
    x = torch.randn(5, FACTS.hidden_size, generator=torch.Generator().manual_seed(2)).to(attention.k_proj.weight)
    base = torch.randn(5, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for onto in (None, base):
            wanted = group(x, base_no=onto)
            with monkeypatch.context() as patch:
                patch.setattr(low_rank_linear.torch.linalg, "vector_norm", None)
                made = fast(x, base_no=onto)
            assert made.dtype == wanted.dtype
            assert float((made - wanted).norm() / wanted.norm()) < allowed
