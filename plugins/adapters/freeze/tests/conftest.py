"""A tiny random Llama and its facts."""

from __future__ import annotations

from finetooth_kit.adapter_fixtures import tiny, tokens

__all__ = ["tiny", "tokens"]
