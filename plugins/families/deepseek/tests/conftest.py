"""Shared data, and tokenizers with DeepSeek's added tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from finetooth_deepseek import markup as m
from finetooth_kit.shared_data import shared
from finetooth_kit.templates import template_tokenizer
from finetooth_toolbox.text.tokenizers import FastTokenizer

SPECIAL = (m.BEGIN, m.END)
PLAIN = tuple(token for token in (*m.CONTROLS, *m.OPTIONAL) if token not in SPECIAL)
DISTILLED = (m.USER, m.ASSISTANT, m.THINK, m.THOUGHT)  # Qwen's vocabulary has no tokens for tools


@pytest.fixture(scope="session")
def tokenizers(shared: Path) -> Callable[..., FastTokenizer]:
    """`tokenizers("deepseek-v3")` over bytes, `tokenizers("deepseek-v3", real=True)` over the vocabulary of phi-2."""
    made: dict[tuple[str, bool], FastTokenizer] = {}

    def get(name: str, *, real: bool = False) -> FastTokenizer:
        if (name, real) not in made:
            template = (shared / f"templates/{name}.jinja").read_text(encoding="utf-8")
            plain = DISTILLED if "distill" in name else PLAIN
            base = shared / "tokenizers/phi-2" if real else None
            made[name, real] = template_tokenizer(template, SPECIAL, bos=m.BEGIN, eos=m.END, plain=plain, base=base)
        return made[name, real]

    return get


__all__ = ["shared", "tokenizers"]
