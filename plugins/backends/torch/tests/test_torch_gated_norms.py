"""Gated norms that the operation computes are those whose modules have its formula, and no number changes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from finetooth_kernels import references
from finetooth_torch.decoder.gated_norms import compute_gated_norms
from torch import nn

SIZES = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_linear_attention_gives_the_same_numbers_by_it(precision: torch.dtype) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("qwen3_5_text", **SIZES)
    model = transformers.AutoModelForCausalLM.from_config(config).to(precision).eval()
    other, called = copy.deepcopy(model), []

    def compute(x: Any, gate: Any, weight: Any, eps: float) -> Any:
        called.append(tuple(x.shape))
        return references.gated_norm(x, gate, weight, eps)

    assert compute_gated_norms(other, compute) == 1
    tokens = torch.arange(2, 14).view(2, 6)
    outputs = [of(input_ids=tokens).logits for of in (model, other)]
    assert called == [(2 * 6 * 4, 8)]
    torch.testing.assert_close(*outputs, atol=1e-5 if precision == torch.float32 else 3e-2, rtol=1e-4)
    gradients = [torch.autograd.grad(logits.float().square().mean(), of.model.layers[0].linear_attn.norm.weight)[0]
                 for logits, of in zip(outputs, (model, other), strict=True)]  # fmt: skip
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4 if precision == torch.float32 else 0.1)


class GatesFirstRMSNormGated(nn.Module):
    """As in Mamba-2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.randn(8)), 1e-6

    def forward(self, hidden_states: Any, gate: Any = None) -> Any:
        x = hidden_states * nn.functional.silu(gate)
        return self.weight * x * (x.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()


def test_another_formula_stays_what_it_is() -> None:
    assert compute_gated_norms(nn.Sequential(GatesFirstRMSNormGated()), references.gated_norm) == 0
