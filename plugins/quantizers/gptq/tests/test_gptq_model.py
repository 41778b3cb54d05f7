"""`quantize_model_gptq`: a model of transformers and rows of one's own, nearer to what it was than nearest codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from finetooth_gptq.model import quantize_model_gptq
from finetooth_gptq.rounding import nearest
from finetooth_torchshared.grouped_linear import GroupedLinear
from torch import nn


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=72, intermediate_size=129, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for layer in model.model.layers:  # what is read differs in size from place to place
        layer.input_layernorm.weight.data = 10 ** torch.empty(72).uniform_(-1, 1)
        layer.post_attention_layernorm.weight.data = 10 ** torch.empty(72).uniform_(-1, 1)
    return model


def rows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 96, (length,), generator=generator).tolist() for length in (31, 32, 33, 40, 1) * 6]


@torch.no_grad()
def test_it_is_nearer_than_nearest_codes() -> None:
    plain, ids = llama(), torch.randint(0, 96, (8, 32), generator=torch.Generator().manual_seed(2))
    before = plain(ids).logits
    by_gptq = quantize_model_gptq(llama(), 4, rows=rows(), group=32, skip=["k_proj"])
    by_nearest = llama()
    for path, module in list(by_nearest.model.layers.named_modules()):
        if isinstance(module, nn.Linear) and not path.endswith("k_proj"):
            parent, _, name = path.rpartition(".")
            stored = GroupedLinear(nearest(module.weight, 32, 4), module.bias)
            setattr(by_nearest.model.layers.get_submodule(parent), name, stored)
    kinds = {path.rpartition(".")[2]: type(module) for path, module in by_gptq.named_modules()}
    assert kinds["k_proj"] is nn.Linear and kinds["down_proj"] is GroupedLinear and kinds["lm_head"] is nn.Linear
    off = {name: float((model(ids).logits - before).norm()) for name, model in
           {"gptq": by_gptq, "nearest": by_nearest}.items()}  # fmt: skip
    assert 0 < off["gptq"] < 0.9 * off["nearest"], off


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: quantize_model_gptq(llama(), rows=[]), "rows: GPTQ rounds by what the model reads"),
        (lambda: quantize_model_gptq(llama(), rows=[[1], []]), "rows: .*none empty"),
        (lambda: quantize_model_gptq(llama(), 3, rows=rows()), "bits: 3 is neither 4 nor 8"),  # type: ignore[arg-type]
        (lambda: quantize_model_gptq(llama().to("meta"), rows=rows()), "model: lies on meta; move it to one device"),
        (lambda: quantize_model_gptq(nn.Linear(2, 2), rows=rows()), "layers: the model holds no list of modules"),
        (lambda: quantize_model_gptq(llama(), rows=rows(), skip=["proj"]), "model: nothing was stored of model.layers"),
    ],
)
def test_what_does_not_fit_is_named(call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        call()


def test_an_accelerator_rounds_to_the_codes_of_the_cpu() -> None:
    """Every Hessian is inverted there, those of experts that are held as one weight too."""
    pytest.importorskip("finetooth_torch")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("pretend_rounding.py"))],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [
        "llama as_a_quantizer True 42 14 pretend:0",
        "mixture as_a_quantizer True 18 12 pretend:0",
        "llama as_a_function True 42 14 pretend:0",
    ]
