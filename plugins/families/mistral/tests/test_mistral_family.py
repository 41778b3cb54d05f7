"""Facts against transformers' own models of the same config, and tiny models that train."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from finetooth_hooks.tokenizers import FastTokenizer
from finetooth_mistral.family import Mistral

MODELS: Any = transformers.AutoModelForCausalLM
SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "vocab_size": 97,
    "max_position_embeddings": 64,
    "head_dim": 10,
    "pad_token_id": 0,
}
KINDS: dict[str, dict[str, Any]] = {
    "mistral": {},
    "mixtral": {"num_local_experts": 4},
    "ministral": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8},
    "ministral3": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 64,
        }
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_facts_are_those_of_the_model(kind: str) -> None:
    config = transformers.AutoConfig.for_model(kind, **SIZES, **KINDS[kind])
    torch.manual_seed(0)
    model = MODELS.from_config(config).eval()
    facts = Mistral().facts(config.to_dict())
    layers = model.get_submodule(facts.layer_path)
    attention = layers[0].self_attn
    assert (facts.layers, facts.vocab_size, facts.renderer, facts.tied) == (len(layers), 97, "jinja", False)
    assert attention.q_proj.weight.shape == (facts.heads * facts.head_dim, facts.hidden_size)
    assert attention.k_proj.weight.shape == (facts.kv_heads * facts.head_dim, facts.hidden_size)
    if kind != "mixtral":
        assert layers[0].mlp.up_proj.weight.shape == (facts.ffn_size, facts.hidden_size)
    named = {path.rpartition(".")[2] for path, m in layers[0].named_modules() if isinstance(m, torch.nn.Linear)}
    assert named == set(facts.linear_targets) >= set(facts.attention_targets)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        hidden = model.get_submodule(facts.body)(input_ids=ids).last_hidden_state
        logits = model.get_submodule(facts.head.module)(hidden)
        torch.testing.assert_close(logits, model(input_ids=ids).logits, rtol=0, atol=0)


def test_a_window_is_left_to_the_models_own_code() -> None:
    """Mistral 7B v0.1 looks at a window; its successors at everything, which is Llama's layer."""
    config = {**SIZES, "model_type": "mistral"}
    assert Mistral().facts({**config, "sliding_window": 4096}).block is None
    assert Mistral().facts({**config, "sliding_window": None}).block is not None


@pytest.mark.parametrize(
    ("config", "version"),
    [
        ({"vocab_size": 32768, "hidden_size": 4096}, "v3"),  # 7B v0.3
        ({"vocab_size": 32768, "hidden_size": 6144, "model_type": "mixtral"}, "v3"),  # 8x22B
        ({"vocab_size": 32768, "hidden_size": 12288}, None),  # Large: v3 or v7
        ({"vocab_size": 32000, "hidden_size": 4096}, None),  # 7B v0.1, v0.2 and their many children
        ({"vocab_size": 131072, "hidden_size": 5120, "rope_theta": 1e6}, "v3-tekken"),  # Nemo
        ({"vocab_size": 131072, "hidden_size": 5120, "rope_parameters": {"rope_theta": 1e8}}, "v7-tekken"),  # Small
        ({"vocab_size": 131072, "hidden_size": 4096, "rope_theta": 1e8}, "v3-tekken"),  # Ministral 8B
        ({"vocab_size": 131072, "hidden_size": 5120, "rope_theta": 1e9}, None),  # Devstral, Magistral
        ({"vocab_size": 131072, "hidden_size": 4096, "rope_theta": 1e6, "model_type": "ministral3"}, None),
    ],
)
def test_the_renderer_is_told_by_the_config(config: dict[str, Any], version: str | None) -> None:
    found = Mistral().facts({**SIZES, "model_type": "mistral", **config}).renderer
    assert found == ("jinja" if version is None else {"name": "mistral", "version": version})


@pytest.mark.parametrize("kind", KINDS)
def test_a_tiny_model_trains(mistral_tokenizer: Callable[..., FastTokenizer], tmp_path: Path, kind: str) -> None:
    finetooth = pytest.importorskip("finetooth")
    tokenizer = mistral_tokenizer("v3")
    config = transformers.AutoConfig.for_model(
        kind, **{**SIZES, "vocab_size": tokenizer.vocab_size, "max_position_embeddings": 512}, **KINDS[kind]
    )
    torch.manual_seed(0)
    MODELS.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    recipe = {
        "model": str(tmp_path / "model"),
        "data": {"train": {"name": "tasks", "task": "family", "count": 8, "seed": 5}, "renderer": "mistral"},
        "adapter": {"name": "lora", "rank": 4, "targets": "all-linear"},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2},
        "train": {"batch_size": 4, "precision": "fp32", "max_length": 512, "max_steps": 2},
        "trackers": ["jsonl"],
        "output": str(tmp_path / "run"),
    }
    assert finetooth.run(recipe).status == "done"
    lines = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines())
    first, second = (line["loss"] for line in lines if line["event"] == "step")
    assert 0 < second < first < 20
