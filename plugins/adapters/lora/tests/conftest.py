"""A tiny random Llama and its facts."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finetooth_hooks.protocols import Head, ModelFacts, ModelInfo
from transformers import LlamaConfig, LlamaForCausalLM


def _build(*, tied: bool = False, layers: int = 2) -> Any:
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = LlamaForCausalLM(config).eval()
    facts = ModelFacts(
        hidden_size=32,
        layers=layers,
        heads=4,
        kv_heads=2,
        head_dim=8,
        ffn_size=48,
        vocab_size=61,
        max_positions=64,
        layer_path="model.layers",
        body="model",
        head=Head(),
        attention_targets=("q_proj", "k_proj", "v_proj", "o_proj"),
        linear_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        renderer="none",
        tied=tied,
    )
    info = ModelInfo(
        reference="tiny",
        loader="test:tiny",
        model_type="llama",
        config=config.to_dict(),
        parameters=sum(p.numel() for p in model.parameters()),
        weight_bytes=0,
    )
    return SimpleNamespace(model=model, facts=facts, info=info)


@pytest.fixture
def tiny() -> Callable[..., Any]:
    """Makes a namespace with `model`, `facts`, `info`; the same weights every time."""
    return _build


@pytest.fixture
def tokens() -> torch.Tensor:
    """(2, 9) token ids."""
    return torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(1))
