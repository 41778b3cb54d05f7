"""Facts against transformers' own model of the same config."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from finetooth_hooks.testing import parametrize_with_checks
from finetooth_llama.family import Llama
from transformers import LlamaConfig, LlamaForCausalLM

SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "vocab_size": 97,
    "max_position_embeddings": 64,
}


@parametrize_with_checks("finetooth_llama.plugin")
def test_conforms(check: Any) -> None:
    check()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("heads", [{}, {"head_dim": 10}])
def test_facts_are_those_of_the_model(tied: bool, heads: dict[str, int]) -> None:
    config = LlamaConfig(**SIZES, **heads, tie_word_embeddings=tied)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    facts = Llama().facts(config.to_dict())
    layers = model.get_submodule(facts.layer_path)
    assert (facts.layers, facts.hidden_size, facts.vocab_size) == (len(layers), 24, 97)
    attention = layers[0].self_attn
    assert attention.q_proj.weight.shape == (facts.heads * facts.head_dim, facts.hidden_size)
    assert attention.k_proj.weight.shape == (facts.kv_heads * facts.head_dim, facts.hidden_size)
    assert layers[0].mlp.up_proj.weight.shape == (facts.ffn_size, facts.hidden_size)
    named = {path.rpartition(".")[2] for path, m in layers[0].named_modules() if isinstance(m, torch.nn.Linear)}
    assert named == set(facts.linear_targets)
    inside = {path for path, m in attention.named_modules() if isinstance(m, torch.nn.Linear)}
    assert inside == set(facts.attention_targets)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        hidden = model.get_submodule(facts.body)(input_ids=ids).last_hidden_state
        logits = model.get_submodule(facts.head.module)(hidden) * facts.head.scale
        torch.testing.assert_close(logits, model(input_ids=ids).logits, rtol=0, atol=0)
    shared = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert facts.tied == shared == tied


def test_old_configs_without_grouped_heads() -> None:
    """Llama 1's config.json states no num_key_value_heads."""
    values = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
    facts = Llama().facts({**values, "model_type": "llama"})
    assert (facts.kv_heads, facts.head_dim, facts.tied) == (4, 6, False)


@pytest.mark.parametrize(
    ("config", "renderer"),
    [
        ({"vocab_size": 49152, "eos_token_id": 2, "bos_token_id": 1}, "chatml"),  # SmolLM2-Instruct
        ({"vocab_size": 49152}, "chatml"),  # the same from a GGUF file, whose config states no token ids
        ({"vocab_size": 49152, "eos_token_id": 0, "bos_token_id": 0}, "jinja"),  # code models of this size
        ({"vocab_size": 128256, "eos_token_id": 128009}, {"name": "llama3", "dated": False}),
        ({"vocab_size": 128256, "rope_scaling": {"rope_type": "llama3"}}, {"name": "llama3", "dated": True}),
        ({"vocab_size": 128256, "rope_parameters": {"rope_type": "llama3"}}, {"name": "llama3", "dated": True}),
        ({"vocab_size": 128256, "rope_parameters": {"rope_type": "default"}}, {"name": "llama3", "dated": False}),
        ({"vocab_size": 32000, "eos_token_id": 2}, "jinja"),  # Llama 2 and its many children
        ({"vocab_size": 128256, "model_type": "smollm3"}, "smollm3"),
    ],
)
def test_the_renderer_is_told_by_the_vocabulary(config: dict[str, Any], renderer: Any) -> None:
    assert Llama().facts({**SIZES, **config}).renderer == renderer
