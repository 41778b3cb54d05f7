"""Facts of Granite models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetooth_hooks import NoOptions
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import Head, ModelFacts
from finetooth_toolbox.llama_shape import ATTENTION, llama_facts

SHARED = ("in_proj", "input_linear", "output_linear")
"""Linear modules of a Granite 4 layer besides attention: into Mamba, and the shared feed-forward."""


def build(options: NoOptions, context: Context) -> Granite:
    return Granite()


class Granite:
    """The family `granite`."""

    def facts(self, config: Mapping[str, Any]) -> ModelFacts:
        """Sizes and module names of a model, from its config.

        Logits are divided by `logits_scaling`. No block: embeddings, residuals and attention scores have scales of
        their own. Granite 4's layers have Mamba or attention, and experts with a shared feed-forward; low-rank
        additions leave `out_proj` alone, which Mamba's fused kernels read past an adapter.
        """
        head = Head("lm_head", scale=1.0 / float(config.get("logits_scaling") or 1.0))
        facts = replace(llama_facts(config, renderer="jinja", max_positions=2048), head=head, block=None)
        if config.get("model_type") != "granitemoehybrid":
            return facts
        return replace(facts, linear_targets=(*ATTENTION, *SHARED), untargeted=("out_proj",))
