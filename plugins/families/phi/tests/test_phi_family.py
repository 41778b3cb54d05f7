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
from finetooth_phi.family import Phi

MODELS: Any = transformers.AutoModelForCausalLM
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "vocab_size": 97,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LONG: dict[str, Any] = {
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
    "original_max_position_embeddings": 16,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "phi": ("phi", {}),
    "phi3": ("phi3", {"sliding_window": 8}),
    "phi3, long": ("phi3", LONG),
}


def configured(kind: str, **sizes: Any) -> Any:
    model_type, own = KINDS[kind]
    return transformers.AutoConfig.for_model(model_type, **{**SIZES, **own, **sizes})


@pytest.mark.parametrize("kind", KINDS)
def test_facts_are_those_of_the_model(kind: str) -> None:
    config = configured(kind)
    torch.manual_seed(0)
    model = MODELS.from_config(config).eval()
    facts = Phi().facts(config.to_dict())
    layers = model.get_submodule(facts.layer_path)
    attention, mlp = layers[0].self_attn, layers[0].mlp
    assert (facts.layers, facts.vocab_size, facts.renderer, facts.tied) == (len(layers), 97, "jinja", False)
    assert (facts.max_positions, facts.block) == (64, None)
    queries, keys = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    if kind == "phi":
        assert (attention.q_proj.out_features, attention.k_proj.out_features) == (queries, keys)
        assert mlp.fc1.out_features == facts.ffn_size
    else:
        assert attention.qkv_proj.out_features == queries + 2 * keys
        assert mlp.gate_up_proj.out_features == 2 * facts.ffn_size
    named = {path.rpartition(".")[2] for path, m in layers[0].named_modules() if isinstance(m, torch.nn.Linear)}
    assert named == set(facts.linear_targets) > set(facts.attention_targets)
    assert set(facts.attention_targets) == {p for p, m in attention.named_modules() if isinstance(m, torch.nn.Linear)}
    ids = torch.arange(9)[None]
    with torch.no_grad():
        hidden = model.get_submodule(facts.body)(input_ids=ids).last_hidden_state
        logits = model.get_submodule(facts.head.module)(hidden)
        torch.testing.assert_close(logits, model(input_ids=ids).logits, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("config", "renderer"),
    [
        ({"vocab_size": 32064, "model_type": "phi3"}, "phi3"),  # Phi-3, Phi-3.5
        ({"vocab_size": 100352, "model_type": "phi3"}, "phi4"),  # Phi-4, Phi-4-reasoning
        ({"vocab_size": 200064, "model_type": "phi3"}, "jinja"),  # Phi-4-mini
        ({"vocab_size": 51200, "model_type": "phi"}, "jinja"),  # Phi-2
    ],
)
def test_the_renderer_is_told_by_the_vocabulary(config: dict[str, Any], renderer: str) -> None:
    assert Phi().facts({**SIZES, **config}).renderer == renderer


@pytest.mark.parametrize("kind", KINDS)
def test_a_tiny_model_trains(phi_tokenizer: Callable[..., FastTokenizer], tmp_path: Path, kind: str) -> None:
    finetooth = pytest.importorskip("finetooth")
    tokenizer = phi_tokenizer("phi-3")
    config = configured(kind, vocab_size=tokenizer.vocab_size, max_position_embeddings=512)
    torch.manual_seed(0)
    MODELS.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    recipe = {
        "model": str(tmp_path / "model"),
        "data": {"train": {"name": "tasks", "task": "family", "count": 8, "seed": 5}, "renderer": "phi3"},
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
