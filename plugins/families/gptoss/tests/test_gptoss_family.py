"""Facts against transformers' own models of the same config, and tiny models that train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from finetooth_gptoss.family import GPTOSS
from finetooth_kit.families import SIZES, assert_facts, linear_names, train_two_steps
from finetooth_toolbox.text.tokenizers import FastTokenizer

KINDS: dict[str, dict[str, Any]] = {
    "gpt_oss": {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
}
RENDERERS: dict[str, Any] = {"gpt_oss": "harmony"}
QUERIES = {"q_proj"}


def configured(kind: str, **sizes: Any) -> Any:
    return transformers.AutoConfig.for_model(kind, **{**SIZES, **KINDS[kind], **sizes})


@pytest.mark.parametrize("kind", KINDS)
def test_facts_are_those_of_the_model(kind: str) -> None:
    facts, model = assert_facts(GPTOSS(), configured(kind))
    assert facts.renderer == RENDERERS[kind] and not facts.tied
    assert facts.block is not None and facts.block.feed_forward == "mlp"
    attention = model.get_submodule(facts.layer_path)[0].self_attn
    inside = linear_names(attention)
    assert inside == set(facts.attention_targets)
    rows = sum(getattr(attention, name).weight.shape[0] for name in QUERIES & inside)
    assert rows == facts.heads * facts.head_dim


@pytest.mark.parametrize("kind", KINDS)
def test_a_tiny_model_trains(tokenizers: Callable[..., FastTokenizer], tmp_path: Path, kind: str) -> None:
    finetooth = pytest.importorskip("finetooth")
    tokenizer = tokenizers()
    config = configured(kind, vocab_size=tokenizer.vocab_size, max_position_embeddings=512)
    first, second = train_two_steps(finetooth.run, tmp_path, config, tokenizer, renderer="harmony")
    assert second < first
