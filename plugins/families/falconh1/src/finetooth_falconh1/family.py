"""Facts of Falcon-H1 models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetooth_hooks import NoOptions
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import Head, ModelFacts
from finetooth_toolbox.llama_shape import llama_facts


def build(options: NoOptions, context: Context) -> FalconH1:
    return FalconH1()


class FalconH1:
    """The family `falconh1`."""

    def facts(self, config: Mapping[str, Any]) -> ModelFacts:
        """Sizes and module names of a model, from its config.

        Logits are multiplied by `lm_head_multiplier`. Low-rank additions leave Mamba's `out_proj` alone, which fused
        kernels read past an adapter. No block.
        """
        head = Head("lm_head", scale=float(config.get("lm_head_multiplier") or 1.0))
        facts = replace(llama_facts(config, renderer="jinja", max_positions=8192), head=head, block=None)
        return replace(facts, linear_targets=(*facts.linear_targets, "in_proj"), untargeted=("out_proj",))
