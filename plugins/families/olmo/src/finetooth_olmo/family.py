"""Facts of OLMo models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetooth_hooks import NoOptions
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import ModelFacts
from finetooth_toolbox.llama_shape import llama_facts


def build(options: NoOptions, context: Context) -> OLMo:
    return OLMo()


class OLMo:
    """The family `olmo`."""

    def facts(self, config: Mapping[str, Any]) -> ModelFacts:
        """Sizes and module names of a model, from its config.

        No block: norms stand after attention and feed-forward, and queries and keys are normalised over all heads.
        """
        return replace(llama_facts(config, renderer="jinja", max_positions=4096), block=None)
