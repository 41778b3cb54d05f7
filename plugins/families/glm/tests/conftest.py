"""Shared data, and tokenizers with GLM's added tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from finetooth_glm.renderer import GLM4Moe
from finetooth_kit.shared_data import shared
from finetooth_kit.templates import template_tokenizer
from finetooth_toolbox.text.tokenizers import FastTokenizer

SPECIAL = (*GLM4Moe.controls, "<|endoftext|>")
PLAIN = tuple(token for token in GLM4Moe.optional if token not in SPECIAL)


@pytest.fixture(scope="session")
def tokenizers(shared: Path) -> Callable[..., FastTokenizer]:
    """`tokenizers("glm-4.6")` over bytes, `tokenizers("glm-4.6", real=True)` over the vocabulary of phi-2."""
    made: dict[tuple[str, bool], FastTokenizer] = {}

    def get(name: str, *, real: bool = False) -> FastTokenizer:
        if (name, real) not in made:
            template = (shared / f"templates/{name}.jinja").read_text(encoding="utf-8")
            base = shared / "tokenizers/phi-2" if real else None
            made[name, real] = template_tokenizer(template, SPECIAL, eos="<|endoftext|>", plain=PLAIN, base=base)
        return made[name, real]

    return get


__all__ = ["shared", "tokenizers"]
