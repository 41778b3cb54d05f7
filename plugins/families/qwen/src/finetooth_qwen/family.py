"""Facts of Qwen models: Qwen2, Qwen2.5 (`model_type: qwen2`) and Qwen3 (`qwen3`), dense ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetooth_hooks import NoOptions, Pick
from finetooth_hooks.context import Context
from finetooth_hooks.llama_shape import llama_facts
from finetooth_hooks.protocols import ModelFacts

RENDERERS: Mapping[str, Pick] = {
    # its default system message differs between Qwen2 and 2.5, so chatml reads it from the model's template
    "qwen2": "chatml",
    # opens the last answer of a conversation with a think block, except in the variants that do not think, and drops
    # earlier reasoning: only a model's own template tells
    "qwen3": "jinja",
}


def build(options: NoOptions, context: Context) -> Qwen:
    return Qwen()


class Qwen:
    """The family `qwen`."""

    def facts(self, config: Mapping[str, Any]) -> ModelFacts:
        """Sizes and module names of a model, from its config."""
        kind = str(config.get("model_type", "qwen2"))
        return llama_facts(config, renderer=RENDERERS[kind], max_positions=32768, head_norms=kind == "qwen3")
