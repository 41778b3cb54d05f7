"""Fixtures for tests of torch adapters: a tiny random Llama with its facts, and tokens for it.

A conftest names those it wants:

    from finetooth_kit.adapter_fixtures import tiny, tokens

Needs torch and transformers, which are imported when a model is made.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_hooks.protocols import Head, ModelFacts, ModelInfo

VOCAB = 61


def tiny_llama(*, tied: bool = False, layers: int = 2) -> SimpleNamespace:
    """A namespace with `model`, `facts` and `info`; the same weights every time."""
    torch, transformers = import_module("torch"), import_module("transformers")
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
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
        model = transformers.LlamaForCausalLM(config).eval()
    facts = ModelFacts(
        hidden_size=32,
        layers=layers,
        heads=4,
        kv_heads=2,
        head_dim=8,
        ffn_size=48,
        vocab_size=VOCAB,
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
    """Makes a tiny Llama; see `tiny_llama`."""
    return tiny_llama


@pytest.fixture
def tokens() -> Any:
    """(2, 9) token ids."""
    return token_ids()


def token_ids() -> Any:
    """(2, 9) of them, the same every time."""
    torch = import_module("torch")
    return torch.randint(0, VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))


__all__ = ["tiny", "tiny_llama", "token_ids", "tokens"]
