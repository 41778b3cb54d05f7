"""Tokenizers for trying chat templates: bytes with any special tokens, and SmolLM2's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from finetooth_jinja.renderer import JinjaOptions, JinjaRenderer, build
from finetooth_kit import FakeContext
from finetooth_kit.shared_data import shared, smollm2
from finetooth_toolbox.text.tokenizers import FastTokenizer


@pytest.fixture(scope="session")
def byte_level() -> Callable[..., FastTokenizer]:
    """Makes a byte-level tokenizer: `byte_level(template, special, bos=..., eos=...)`."""
    import tokenizers
    import transformers

    def make(template: str, special: Sequence[str], bos: str | None = None, eos: str | None = None) -> FastTokenizer:
        alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
        model = tokenizers.models.BPE({letter: i for i, letter in enumerate(alphabet)}, [])
        backend = tokenizers.Tokenizer(model)
        backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = tokenizers.decoders.ByteLevel()
        names = list(dict.fromkeys([*special, *(token for token in (bos, eos) if token)]))
        backend.add_special_tokens([tokenizers.AddedToken(name, normalized=False) for name in names])
        wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos)
        wrapped.chat_template = template
        return FastTokenizer(wrapped)

    return make


@pytest.fixture
def renderer_of(tmp_path: Path) -> Callable[..., JinjaRenderer]:
    def make(tokenizer: Any, **options: Any) -> JinjaRenderer:
        return build(JinjaOptions(**options), FakeContext(tmp_path, tokenizer=tokenizer))

    return make


__all__ = ["byte_level", "renderer_of", "shared", "smollm2"]
