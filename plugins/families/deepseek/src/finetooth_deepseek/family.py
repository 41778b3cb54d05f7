"""Facts of DeepSeek models: V2 (`model_type: deepseek_v2`), V3, V3.1 and R1 (`deepseek_v3`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetooth_hooks.protocols import ModelFacts
from finetooth_modelfiles.layers import latent_facts


class DeepSeek:
    """The family `deepseek`."""

    def facts(self, config: Mapping[str, Any]) -> ModelFacts:
        """Sizes and module names of a model, from its config.

        V3, V3.1 and R1 have the same config, so which markup a model speaks is left to its own chat template.
        """
        return latent_facts(config, renderer="jinja", max_positions=4096, query_rank=1536, head_dims=(64, 128, 128))
