"""A tiny model folder as transformers writes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from finetooth_kit import FakeContext
from finetooth_kit.tiny_runs import tiny_model_folder, tiny_run  # noqa: F401  (fixtures)
from finetooth_transformers.builder import TransformersOptions
from finetooth_transformers.loader import TransformersLoader


def _write(folder: Path, *, tied: bool = False, pad: str | None = "<|pad|>", shards: str = "5GB") -> Any:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *([pad] if pad else [])]
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([tokenizers.AddedToken(name, normalized=False) for name in special])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token=pad)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(folder, max_shard_size=shards)
    tokenizer.save_pretrained(folder)
    return model


@pytest.fixture
def write() -> Callable[..., Any]:
    """`write(folder, ...)` writes a model there and returns it."""
    return _write


@pytest.fixture
def context(tmp_path: Path) -> FakeContext:
    return FakeContext(tmp_path)


@pytest.fixture
def loader_of(context: FakeContext) -> Callable[..., TransformersLoader]:
    return lambda **options: TransformersLoader(TransformersOptions(**options), context)
