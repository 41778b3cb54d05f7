"""Facts against transformers' own models of the same config, and tiny models that train."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from finetooth_glm.family import GLM
from finetooth_hooks.tokenizers import FastTokenizer

MODELS: Any = transformers.AutoModelForCausalLM
SIZES: dict[str, Any] = {
    "hidden_size": 24,
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
KINDS: dict[str, dict[str, Any]] = {
    "glm": {"head_dim": 8},
    "glm4": {"head_dim": 8},
    "glm4_moe": {
        "head_dim": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
}
RENDERERS: dict[str, Any] = {"glm": "jinja", "glm4": "jinja", "glm4_moe": "glm4_moe"}
QUERIES = {"q_proj"}


@pytest.mark.parametrize("kind", KINDS)
def test_facts_are_those_of_the_model(kind: str) -> None:
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **KINDS[kind]})
    torch.manual_seed(0)
    model = MODELS.from_config(config).eval().float()
    facts = GLM().facts(config.to_dict())
    layers = model.get_submodule(facts.layer_path)
    assert (facts.layers, facts.hidden_size, facts.vocab_size, facts.heads) == (len(layers), 24, 97, 4)
    assert facts.renderer == RENDERERS[kind] and facts.block is None and not facts.tied
    linear = {path.rpartition(".")[2] for path, m in layers.named_modules() if isinstance(m, torch.nn.Linear)}
    assert linear == {*facts.linear_targets, *facts.untargeted}
    inside = {path for path, m in layers[0].self_attn.named_modules() if isinstance(m, torch.nn.Linear)}
    assert inside == set(facts.attention_targets)
    rows = sum(m.weight.shape[0] for m in (getattr(layers[0].self_attn, name) for name in QUERIES & inside))
    assert rows == facts.heads * facts.head_dim
    ids = torch.arange(9)[None]
    with torch.no_grad():
        hidden = model.get_submodule(facts.body)(input_ids=ids).last_hidden_state
        logits = model.get_submodule(facts.head.module)(hidden) * facts.head.scale
        torch.testing.assert_close(logits, model(input_ids=ids).logits, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tiny_model_trains(tokenizers: Callable[..., FastTokenizer], tmp_path: Path, kind: str) -> None:
    finetooth = pytest.importorskip("finetooth")
    tokenizer = tokenizers("glm-4.6")
    sizes = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 512}
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **KINDS[kind], **sizes})
    torch.manual_seed(0)
    MODELS.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    recipe = {
        "model": str(tmp_path / "model"),
        "data": {"train": {"name": "tasks", "task": "family", "count": 4, "seed": 5}, "renderer": "glm4_moe"},
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
