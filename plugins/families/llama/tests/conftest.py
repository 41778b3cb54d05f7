"""Shared data, and SmolLM2's own tokenizer, out of the package that carries its weights."""

from __future__ import annotations

from finetooth_kit.shared_data import byte_level, shared, smollm2, template

__all__ = ["byte_level", "shared", "smollm2", "template"]
