"""Facts against transformers' own models of the same config, and tiny models that train."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from finetooth_gemma.family import Gemma
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
    "head_dim": 10,
    "pad_token_id": 0,
}
MIXED: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
SMALL4 = {**MIXED, "global_head_dim": 20, "hidden_size_per_layer_input": 6, "vocab_size_per_layer_input": 97}
EXPERTS4 = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 8}
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 28,
    "patch_size": 14,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {**MIXED, "final_logit_softcapping": 0.2}),
    "gemma3_text": ("gemma3_text", MIXED),
    "gemma3": ("gemma3", MIXED),
    "gemma4_text": ("gemma4_text", {**SMALL4, "final_logit_softcapping": 0.2}),
    "gemma4": ("gemma4", SMALL4),
    "gemma4, shared keys": (
        "gemma4_text",
        {**SMALL4, "layer_types": MIXED["layer_types"] * 2, "num_hidden_layers": 4, "num_kv_shared_layers": 2},
    ),
    "gemma4, experts": ("gemma4_text", {**SMALL4, "hidden_size_per_layer_input": 0, **EXPERTS4}),
}
RENDERERS = {"gemma": False, "gemma2": False, "gemma3_text": True}  # those with towers may get images


def configured(kind: str, **sizes: Any) -> Any:
    """A tiny config; that of a model with an image tower has the sizes inside."""
    model_type, own = KINDS[kind]
    text = {**SIZES, **own, **sizes}
    if model_type in ("gemma3", "gemma4"):
        vision = {"vision_config": VISION} if model_type == "gemma3" else {}
        return transformers.AutoConfig.for_model(model_type, text_config=text, **vision)
    return transformers.AutoConfig.for_model(model_type, **text)


@pytest.mark.parametrize("kind", KINDS)
def test_facts_are_those_of_the_model(kind: str) -> None:
    config = configured(kind)
    torch.manual_seed(0)
    model = MODELS.from_config(config).eval()
    facts = Gemma().facts(config.to_dict())
    layers = model.get_submodule(facts.layer_path)
    attention = layers[0].self_attn
    assert (facts.layers, facts.vocab_size, facts.hidden_size, facts.tied) == (len(layers), 97, 24, True)
    assert (facts.max_positions, facts.block) == (64, None)
    assert attention.q_proj.weight.shape == (facts.heads * facts.head_dim, 24)
    assert attention.k_proj.weight.shape == (facts.kv_heads * facts.head_dim, 24)
    assert layers[0].mlp.up_proj.weight.shape == (facts.ffn_size, 24)
    named = {path.rpartition(".")[2] for path, m in layers.named_modules() if isinstance(m, torch.nn.Linear)}
    assert named == {*facts.linear_targets, *facts.untargeted}
    assert set(facts.attention_targets) < set(facts.linear_targets)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        hidden = model.get_submodule(facts.body)(input_ids=ids).last_hidden_state
        logits = model.get_submodule(facts.head.module)(hidden) * facts.head.scale
        if facts.head.softcap:
            logits = facts.head.softcap * torch.tanh(logits / facts.head.softcap)
        torch.testing.assert_close(logits, model(input_ids=ids).logits, rtol=0, atol=0)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    towers = [model.get_submodule(path) for path in facts.towers]
    assert bool(towers) == bool(getattr(config, "vision_config", None))
    if kind == "gemma3":
        assert facts.tower_parameters == sum(p.numel() for tower in towers for p in tower.parameters())


def test_the_head_caps_its_logits() -> None:
    """Gemma 2's config.json states 30; Gemma 3's null."""
    config = {**SIZES, "model_type": "gemma2"}
    assert Gemma().facts({**config, "final_logit_softcapping": 30.0}).head.softcap == 30.0
    assert Gemma().facts({**config, "final_logit_softcapping": None}).head.softcap is None


def test_capped_scores_need_attention_that_can_cap() -> None:
    config = configured("gemma2").to_dict()
    assert "sdpa" not in Gemma().facts(config).attention and "eager" in Gemma().facts(config).attention
    assert Gemma().facts({**config, "attn_logit_softcapping": None}).attention == ()


@pytest.mark.parametrize("kind", KINDS)
def test_renderers(kind: str) -> None:
    model_type, _ = KINDS[kind]
    expected: Any = {"name": "gemma", "system": RENDERERS[model_type]} if model_type in RENDERERS else "jinja"
    assert Gemma().facts(configured(kind).to_dict()).renderer == expected


def test_small_gemma4_begins_with_a_high_loss() -> None:
    assert Gemma().facts(configured("gemma4").to_dict()).first_loss[1] > 12
    assert Gemma().facts(configured("gemma4, experts").to_dict()).first_loss[1] < 12


@pytest.mark.parametrize("kind", KINDS)
def test_a_tiny_model_trains(gemma_tokenizer: Callable[..., FastTokenizer], tmp_path: Path, kind: str) -> None:
    finetooth = pytest.importorskip("finetooth")
    tokenizer = gemma_tokenizer("gemma-3")
    size = tokenizer.vocab_size
    config = configured(kind, vocab_size=size, vocab_size_per_layer_input=size, max_position_embeddings=512)
    torch.manual_seed(0)
    MODELS.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    recipe = {
        "model": str(tmp_path / "model"),
        "data": {"train": {"name": "tasks", "task": "family", "count": 8, "seed": 5}, "renderer": "gemma"},
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
