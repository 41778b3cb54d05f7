"""Experts held as one weight, stored in fewer bits: what is computed over them, and what a LoRA adds to them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_kit.fake_context import FACTS, FakeContext
from finetooth_lora.adapter import LoraAdapter, LoraOptions
from finetooth_portable.quantizers import Int4Options, Int8Options, Mxfp4Options, build_int4, build_int8, build_mxfp4
from finetooth_torchshared.quantised import dequantise, is_quantised, quantise, stored_weights
from finetooth_torchshared.stored_experts import ExpertWeight
from transformers import GptOssConfig, GptOssForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "num_experts_per_tok": 2, "max_position_embeddings": 64,
}  # fmt: skip
FORMATS = {
    "int8": lambda: build_int8(Int8Options(group=32), FakeContext(Path())),
    "int4": lambda: build_int4(Int4Options(), FakeContext(Path())),
    "mxfp4": lambda: build_mxfp4(Mxfp4Options(), FakeContext(Path())),
}
FAMILIES = ["qwen3_moe", "gpt_oss"]
EXPERTS = {"qwen3_moe": 2 * 4 * 3 * 32 * 16, "gpt_oss": 2 * 4 * 3 * 32 * 48}
BOTH = ["experts.gate_up_proj", "experts.down_proj"]


def made(family: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if family == "qwen3_moe":
            return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, moe_intermediate_size=16, num_experts=4)).eval()
        return GptOssForCausalLM(GptOssConfig(**SIZES, num_local_experts=4)).eval()


def adapted(model: Any, family: str) -> Any:
    facts = replace(FACTS, block=None)
    options = LoraOptions(rank=2, targets=[], target_parameters=BOTH)
    with_lora = LoraAdapter(options).apply(model, facts, np.random.default_rng(0))
    drawn = np.random.default_rng(1)
    for name, parameter in with_lora.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.from_numpy(drawn.normal(0, 0.1, tuple(parameter.shape)).astype(np.float32)))
    return with_lora


def of(model: Any, rows: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, and the slopes of all that trains."""
    logits = model(rows).logits
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    slopes = torch.autograd.grad(logits.square().sum(), list(trained.values())) if trained else ()
    return logits.detach(), dict(zip(trained, slopes, strict=True))


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).integers(0, 61, (2, 9)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", FORMATS)
def test_experts_compute_with_what_is_stored(family: str, form: str, rows: torch.Tensor) -> None:
    stored = quantise(made(family), FORMATS[form](), "cpu")
    paths = [name for name, parameter in stored.named_parameters() if parameter.dim() == 3]
    assert paths == [] and is_quantised(stored)
    assert stored_weights(stored) >= EXPERTS[family]
    computed, _ = of(stored, rows)
    plain = dequantise(stored, torch.float32)
    assert not is_quantised(plain)
    assert sorted(plain.state_dict()) == sorted(made(family).state_dict())
    expected, _ = of(plain, rows)
    assert torch.equal(computed, expected)
    before = dict(made(family).named_parameters())
    for name, parameter in plain.named_parameters():
        if parameter.dim() == 3:
            error = (parameter - before[name]).square().mean().sqrt() / before[name].square().mean().sqrt()
            assert 0 < error < (0.02 if form == "int8" else 0.2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("code", ["eager", "grouped_mm", "finetooth"])
def test_a_lora_on_stored_experts_has_the_slopes_of_one_on_the_same_numbers(
    family: str, code: str, rows: torch.Tensor
) -> None:
    stored = adapted(quantise(made(family), FORMATS["int4"](), "cpu"), family)
    plain = adapted(dequantise(quantise(made(family), FORMATS["int4"](), "cpu"), torch.float32), family)
    stored.set_experts_implementation(code)
    plain.set_experts_implementation("eager")
    (logits, slopes), (expected, wanted) = of(stored, rows), of(plain, rows)
    assert torch.allclose(logits, expected, rtol=1e-5, atol=1e-6)
    assert slopes.keys() == wanted.keys() and len(slopes) == 8
    for name, slope in slopes.items():
        assert torch.allclose(slope, wanted[name], rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("code", ["eager", "finetooth"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_of_the_weight_is_kept_for_backward(rows: torch.Tensor, checkpointing: bool, code: str) -> None:
    model = adapted(quantise(made("qwen3_moe"), FORMATS["int4"](), "cpu"), "qwen3_moe")
    model.set_experts_implementation(code)
    _, wanted = of(model, rows)
    kept: list[tuple[int, ...]] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _, slopes = of(model, rows)
    assert kept  # whoever keeps activations elsewhere is asked for all but the weights
    assert not [shape for shape in kept if shape in ((4, 32, 32), (4, 32, 16), (32, 32), (16, 32), (32, 16))]
    for name, slope in slopes.items():
        assert torch.allclose(slope, wanted[name], rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_without_rows_do_not_become_numbers(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of four experts have rows; values and slopes are those of plain numbers."""
    stored = adapted(quantise(made(family), FORMATS["int4"](), "cpu"), family)
    plain = adapted(dequantise(quantise(made(family), FORMATS["int4"](), "cpu"), torch.float32), family)
    plain.set_experts_implementation("eager")
    read: list[int] = []
    for weight in [module for module in stored.modules() if isinstance(module, ExpertWeight)]:
        own = weight.stored.dequantised_rows

        def watched(first: int, last: int, dtype: Any, own: Any = own, each: int = weight.shape[1]) -> Any:
            read.append((last - first) // each)
            return own(first, last, dtype)

        monkeypatch.setattr(weight.stored, "dequantised_rows", watched)
    rows = torch.tensor([[5]])
    (logits, slopes), (expected, wanted) = of(stored, rows), of(plain, rows)
    assert sum(read) == 2 * 2 * 2 * 2  # layers, weights, experts; forward and backward
    assert torch.allclose(logits, expected, rtol=1e-5, atol=1e-6)
    for name, slope in slopes.items():
        assert torch.allclose(slope, wanted[name], rtol=1e-4, atol=1e-5), name
