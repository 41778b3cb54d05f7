"""Facts against transformers' own models of the same config."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from finetooth_hooks.testing import parametrize_with_checks
from finetooth_qwen.family import Qwen

SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "vocab_size": 97,
    "max_position_embeddings": 64,
}


@parametrize_with_checks("finetooth_qwen.plugin")
def test_conforms(check: Any) -> None:
    check()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("kind", "renderer"), [("qwen2", "chatml"), ("qwen3", "jinja")])
def test_facts_are_those_of_the_model(kind: str, renderer: str, tied: bool) -> None:
    own = {"head_dim": 10} if kind == "qwen3" else {}
    config = transformers.AutoConfig.for_model(kind, **SIZES, **own, tie_word_embeddings=tied)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    facts = Qwen().facts(config.to_dict())
    layers = model.get_submodule(facts.layer_path)
    attention = layers[0].self_attn
    assert (facts.layers, facts.renderer, facts.tied) == (len(layers), renderer, tied)
    assert attention.q_proj.weight.shape == (facts.heads * facts.head_dim, facts.hidden_size)
    assert attention.k_proj.weight.shape == (facts.kv_heads * facts.head_dim, facts.hidden_size)
    assert layers[0].mlp.up_proj.weight.shape == (facts.ffn_size, facts.hidden_size)
    named = {path.rpartition(".")[2] for path, m in layers[0].named_modules() if isinstance(m, torch.nn.Linear)}
    assert named == set(facts.linear_targets) > set(facts.attention_targets)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        hidden = model.get_submodule(facts.body)(input_ids=ids).last_hidden_state
        logits = model.get_submodule(facts.head.module)(hidden)
        torch.testing.assert_close(logits, model(input_ids=ids).logits, rtol=0, atol=0)
