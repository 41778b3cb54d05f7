"""Facts of Cohere's models: Command R and Aya Expanse (`model_type: cohere`), Command R7B and Tiny Aya (`cohere2`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetooth_hooks.protocols import Head, ModelFacts
from finetooth_toolbox.llama_shape import HEAD_NORMS, llama_block, llama_facts, windowed_layers

SCALE = 0.0625
"""Of the logits, where a config does not say."""


class Cohere:
    """The family `cohere`."""

    def facts(self, config: Mapping[str, Any]) -> ModelFacts:
        """Sizes and module names of a model, from its config.

        Embeddings are tied unless the config says otherwise, and logits are multiplied by `logit_scale`. Attention and
        feed-forward are computed in parallel, norms subtract the mean, and pairs of neighbours rotate. In Cohere2 only
        layers with a window rotate.
        """
        windowed = config.get("model_type") == "cohere2"
        renderer = "cohere2" if windowed else "jinja"
        facts = llama_facts(config, renderer=renderer, max_positions=8192)
        scale, tied = config.get("logit_scale"), bool(config.get("tie_word_embeddings", True))
        head = Head("lm_head", scale=SCALE if scale is None else float(scale))
        named = HEAD_NORMS if config.get("use_qk_norm") else {}
        layers = windowed_layers(facts, config) if windowed else ()
        turned = tuple("" if layer.window else None for layer in layers)
        block = llama_block(
            config, windows=windowed, norms="own", parallel=True, ffn_norm="input_layernorm", interleaved=True,
            rotations=turned, **named,
        )  # fmt: skip
        return replace(facts, head=head, tied=tied, block=block, per_layer=layers)
