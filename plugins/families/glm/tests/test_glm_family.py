"""Facts against transformers' own models of the same config, and tiny models that train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from finetooth_glm.family import GLM
from finetooth_kit.families import EXPERTS, LATENT, SIZES, assert_facts, linear_names, train_two_steps
from finetooth_toolbox.text.tokenizers import FastTokenizer

KINDS: dict[str, dict[str, Any]] = {
    "glm": {"head_dim": 8},
    "glm4": {"head_dim": 8},
    "glm4_moe": {**EXPERTS, "head_dim": 8, "first_k_dense_replace": 1},
    "glm4_moe_lite": {**LATENT, **EXPERTS, "mlp_layer_types": ["dense", "sparse"]},
}
RENDERERS: dict[str, Any] = {"glm": "jinja", "glm4": "jinja", "glm4_moe": "glm4_moe", "glm4_moe_lite": "glm4_7"}
QUERIES = {"q_proj", "q_b_proj"}


def configured(kind: str, **sizes: Any) -> Any:
    return transformers.AutoConfig.for_model(kind, **{**SIZES, **KINDS[kind], **sizes})


@pytest.mark.parametrize("kind", KINDS)
def test_facts_are_those_of_the_model(kind: str) -> None:
    facts, model = assert_facts(GLM(), configured(kind))
    assert facts.renderer == RENDERERS[kind] and not facts.tied
    assert (facts.block is None) is ("moe" in kind)
    attention = model.get_submodule(facts.layer_path)[0].self_attn
    inside = linear_names(attention)
    assert inside == set(facts.attention_targets)
    rows = sum(getattr(attention, name).weight.shape[0] for name in QUERIES & inside)
    assert rows == facts.heads * facts.head_dim


@pytest.mark.parametrize("kind", KINDS)
def test_a_tiny_model_trains(tokenizers: Callable[..., FastTokenizer], tmp_path: Path, kind: str) -> None:
    finetooth = pytest.importorskip("finetooth")
    tokenizer = tokenizers("glm-4.6")
    config = configured(kind, vocab_size=tokenizer.vocab_size, max_position_embeddings=512)
    first, second = train_two_steps(finetooth.run, tmp_path, config, tokenizer, renderer="glm4_moe")
    assert second < first
