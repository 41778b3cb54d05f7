"""Facts of Kimi K2 models (`model_type: kimi_k2`), which are built as DeepSeek V3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetooth_hooks.protocols import ModelFacts
from finetooth_modelfiles.layers import latent_facts


class Kimi:
    """The family `kimi`."""

    def facts(self, config: Mapping[str, Any]) -> ModelFacts:
        """Sizes and module names of a model, from its config."""
        return latent_facts(config, renderer="kimi_k2", max_positions=4096, query_rank=1536, head_dims=(64, 128, 128))
