"""Facts against transformers' own models of the same config, and tiny models that train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from finetooth_kit.families import SIZES, assert_facts, linear_names, train_two_steps
from finetooth_phi.family import Phi
from finetooth_toolbox.text.tokenizers import FastTokenizer

OWN = {**SIZES, "hidden_size": 32}
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
    return transformers.AutoConfig.for_model(model_type, **{**OWN, **own, **sizes})


@pytest.mark.parametrize("kind", KINDS)
def test_facts_are_those_of_the_model(kind: str) -> None:
    facts, model = assert_facts(Phi(), configured(kind))
    layer = model.get_submodule(facts.layer_path)[0]
    attention, mlp = layer.self_attn, layer.mlp
    assert (facts.renderer, facts.tied, facts.untargeted) == ("jinja", False, ())
    assert (facts.block is None) is (kind == "phi3, long")
    queries, keys = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    if kind == "phi":
        assert (attention.q_proj.out_features, attention.k_proj.out_features) == (queries, keys)
        assert mlp.fc1.out_features == facts.ffn_size
    else:
        assert attention.qkv_proj.out_features == queries + 2 * keys
        assert mlp.gate_up_proj.out_features == 2 * facts.ffn_size
    assert set(facts.attention_targets) == linear_names(attention) < set(facts.linear_targets)


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
    assert Phi().facts({**OWN, **config}).renderer == renderer


@pytest.mark.parametrize("kind", KINDS)
def test_a_tiny_model_trains(phi_tokenizer: Callable[..., FastTokenizer], tmp_path: Path, kind: str) -> None:
    finetooth = pytest.importorskip("finetooth")
    tokenizer = phi_tokenizer("phi-3")
    config = configured(kind, vocab_size=tokenizer.vocab_size, max_position_embeddings=512)
    first, second = train_two_steps(finetooth.run, tmp_path, config, tokenizer, renderer="phi3")
    assert second < first
