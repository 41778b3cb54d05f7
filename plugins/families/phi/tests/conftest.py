"""Shared data, and tokenizers with the control tokens and chat templates of Phi."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from finetooth_kit.shared_data import shared
from finetooth_kit.templates import template_tokenizer
from finetooth_toolbox.text.tokenizers import FastTokenizer

PHI3 = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>", "<s>"]
PHI4 = ["<|im_start|>", "<|im_sep|>", "<|im_end|>", "<|endoftext|>"]


@pytest.fixture(scope="session")
def phi_tokenizer(shared: Path) -> Callable[..., FastTokenizer]:
    """Makes a tokenizer with a template: of bytes; Phi-3-mini's own; or Phi-2's, which are bytes with many merges."""
    made: dict[tuple[str, str], FastTokenizer] = {}

    def make(template: str, base: str = "") -> FastTokenizer:
        if (template, base) not in made:
            source = (shared / f"templates/{template}.jinja").read_text(encoding="utf-8")
            new = template == "phi-4-reasoning"
            own = base == "phi-3-mini"  # has its tokens, some of which swallow the blanks that follow them
            made[template, base] = template_tokenizer(
                source,
                [] if own else PHI4 if new else PHI3,
                eos="<|im_end|>" if new else "<|endoftext|>",
                bos="<|endoftext|>" if new else "<s>",
                plain=["<think>", "</think>"] if new else [],
                base=shared / "tokenizers" / base if base else None,
            )
        return made[template, base]

    return make


__all__ = ["phi_tokenizer", "shared"]
