"""Shared data and a byte-level tokenizer with Llama 3's special tokens."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from finetooth_hooks.tokenizers import FastTokenizer

ROOT = Path(__file__).parents[4]
SPECIAL = "<|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eom_id|> <|eot_id|> <|python_tag|>"


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = Path(os.environ.get("FT_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip("no shared data here (FT_SHARED)")
    return folder


@pytest.fixture(scope="session")
def llama3_bytes() -> Callable[[str], FastTokenizer]:
    """Makes a tokenizer of bytes, with a few merges of line feeds as Llama 3 has them, and a chat template."""
    import tokenizers
    import transformers

    def make(template: str) -> FastTokenizer:
        alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
        feed = "Ċ"  # how byte-level vocabularies spell a line feed
        vocabulary = {letter: i for i, letter in enumerate([*alphabet, feed * 2, feed * 3])}
        backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [(feed, feed), (feed * 2, feed)]))
        backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = tokenizers.decoders.ByteLevel()
        backend.add_special_tokens([tokenizers.AddedToken(name, normalized=False) for name in SPECIAL.split()])
        wrapped = transformers.PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
        )
        wrapped.chat_template = template
        return FastTokenizer(wrapped)

    return make
