"""Facts against transformers' own models of the same config, and tiny models that train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from finetooth_gemma.family import Gemma
from finetooth_kit.families import SIZES, assert_facts, assert_widths, train_two_steps
from finetooth_toolbox.text.tokenizers import FastTokenizer

OWN = {**SIZES, "head_dim": 10}
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
    text = {**OWN, **own, **sizes}
    if model_type in ("gemma3", "gemma4"):
        vision = {"vision_config": VISION} if model_type == "gemma3" else {}
        return transformers.AutoConfig.for_model(model_type, text_config=text, **vision)
    return transformers.AutoConfig.for_model(model_type, **text)


@pytest.mark.parametrize("kind", KINDS)
def test_facts_are_those_of_the_model(kind: str) -> None:
    config = configured(kind)
    facts, model = assert_facts(Gemma(), config)
    assert facts.tied and (facts.block is not None) is (kind in ("gemma", "gemma2", "gemma3_text"))
    assert_widths(facts, model.get_submodule(facts.layer_path)[0])
    assert set(facts.attention_targets) < set(facts.linear_targets)
    towers = [model.get_submodule(path) for path in facts.towers]
    assert bool(towers) == bool(getattr(config, "vision_config", None))
    if kind == "gemma3":
        assert facts.tower_parameters == sum(p.numel() for tower in towers for p in tower.parameters())


def test_the_head_caps_its_logits() -> None:
    """Gemma 2's config.json states 30; Gemma 3's null."""
    config = {**OWN, "model_type": "gemma2"}
    assert Gemma().facts({**config, "final_logit_softcapping": 30.0}).head.softcap == 30.0
    assert Gemma().facts({**config, "final_logit_softcapping": None}).head.softcap is None


def test_capped_scores_need_attention_that_can_cap() -> None:
    config = configured("gemma2").to_dict()
    assert Gemma().facts(config).attention.softcap == config["attn_logit_softcapping"] == 50.0
    assert Gemma().facts({**config, "attn_logit_softcapping": None}).attention.softcap is None


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
    first, second = train_two_steps(finetooth.run, tmp_path, config, tokenizer, renderer="gemma")
    assert second < first
