"""Shared data, and tokenizers with Gemma's control tokens and chat templates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from finetooth_kit.shared_data import shared, trl_template
from finetooth_kit.templates import template_tokenizer
from finetooth_toolbox.text.tokenizers import FastTokenizer

SPECIAL = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]


@pytest.fixture(scope="session")
def gemma_tokenizer(shared: Path) -> Callable[..., FastTokenizer]:
    """Makes a tokenizer with a template: of bytes; or Phi-3-mini's, made into one of Gemma's kind, which puts no blank
    before a text. As in Gemma's own, runs of line feeds are added tokens that are not special."""
    from tokenizers import decoders, normalizers

    made: dict[tuple[str, str], FastTokenizer] = {}

    def make(template: str, base: str = "") -> FastTokenizer:
        if (template, base) not in made:
            source = (shared / f"templates/{template}.jinja").read_text(encoding="utf-8")
            folder = shared / "tokenizers" / base if base else None
            tokenizer = template_tokenizer(
                source, SPECIAL, eos="<eos>", bos="<bos>", plain=["\n\n", "\n\n\n"], base=folder
            )
            if base:
                backend = tokenizer.wrapped.backend_tokenizer
                backend.normalizer = normalizers.Replace(" ", "▁")
                backend.decoder = decoders.Sequence(
                    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
                )
            made[template, base] = tokenizer
        return made[template, base]

    return make


__all__ = ["gemma_tokenizer", "shared", "trl_template"]
