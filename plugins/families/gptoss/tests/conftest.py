"""Shared data, and tokenizers with Harmony's special tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from finetooth_gptoss.renderer import Harmony
from finetooth_kit.shared_data import shared
from finetooth_kit.templates import template_tokenizer
from finetooth_toolbox.text.tokenizers import FastTokenizer

SPECIAL = ("<|startoftext|>", "<|endoftext|>", *Harmony.controls, *Harmony.optional)


@pytest.fixture(scope="session")
def tokenizers(shared: Path) -> Callable[..., FastTokenizer]:
    """`tokenizers()` over bytes, `tokenizers(real=True)` over the vocabulary of phi-2."""
    made: dict[bool, FastTokenizer] = {}
    template = (shared / "templates/gpt-oss.jinja").read_text(encoding="utf-8")

    def get(*, real: bool = False) -> FastTokenizer:
        if real not in made:
            base = shared / "tokenizers/phi-2" if real else None
            made[real] = template_tokenizer(template, SPECIAL, bos="<|startoftext|>", eos="<|return|>", base=base)
        return made[real]

    return get


__all__ = ["shared", "tokenizers"]
