"""Facts of Cohere's models: Command R and Aya Expanse (`model_type: cohere`), Command R7B and Tiny Aya (`cohere2`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetooth_hooks import NoOptions
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import Head, ModelFacts
from finetooth_toolbox.llama_shape import llama_facts

SCALE = 0.0625
"""Of the logits, where a config does not say."""


def build(options: NoOptions, context: Context) -> Cohere:
    return Cohere()


class Cohere:
    """The family `cohere`."""

    def facts(self, config: Mapping[str, Any]) -> ModelFacts:
        """Sizes and module names of a model, from its config.

        Embeddings are tied unless the config says otherwise, and logits are multiplied by `logit_scale`. No block:
        attention and feed-forward are computed in parallel.
        """
        renderer = "cohere2" if config.get("model_type") == "cohere2" else "jinja"
        facts = llama_facts(config, renderer=renderer, max_positions=8192)
        scale, tied = config.get("logit_scale"), bool(config.get("tie_word_embeddings", True))
        head = Head("lm_head", scale=SCALE if scale is None else float(scale))
        return replace(facts, head=head, tied=tied, block=None)
