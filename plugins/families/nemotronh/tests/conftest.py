"""Official templates, and SmolLM2's own tokenizer, out of the package that carries its weights."""

from __future__ import annotations

from finetooth_kit.shared_data import byte_level, smollm2, trl_template

__all__ = ["byte_level", "smollm2", "trl_template"]
