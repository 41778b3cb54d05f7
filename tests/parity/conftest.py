"""Shared data."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from finetooth_kit.shared_data import shared

__all__ = ["shared"]


@pytest.fixture(scope="session")
def byte_tokenizer() -> Any:
    """The module that writes a tokenizer of one token a byte, which the recorders use too."""
    spec = importlib.util.spec_from_file_location(
        "llamafactory_byte_tokenizer", Path(__file__).parent / "llamafactory/byte_tokenizer.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a few hundred weights, whatever tokenizer stands beside it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("weights")
    config = transformers.LlamaConfig(
        vocab_size=320, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=4096,
    )  # fmt: skip
    with torch.random.fork_rng():
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder
