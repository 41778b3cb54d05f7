"""The adapter that adapts nothing: the whole model trains."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks import Context, NoOptions, PlanError
from finetooth_hooks.protocols import ModelFacts, ModelInfo
from finetooth_hooks.whole_weights import export_weights, restore_weights


class FullAdapter:
    """`protocols.Adapter` that trains every parameter."""

    def trained_parameters(self, facts: ModelFacts, parameters: int) -> int:
        """All of them."""
        return parameters

    def apply(self, model: Any, facts: ModelFacts, generator: np.random.Generator) -> Any:
        """The model itself, every floating-point parameter trainable."""
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        return model

    def disabled(self, model: Any) -> AbstractContextManager[None]:
        """
        Raises:
            PlanError: always; the base is overwritten as it trains.
        """
        raise PlanError(
            "adapter: full fine-tuning overwrites the base, so it cannot serve as its own reference",
            action="choose an adapter that can be disabled, such as one of low rank",
        )

    def export(self, model: Any, folder: Path, info: ModelInfo) -> None:
        """Write a transformers folder: config and safetensors."""
        export_weights(model, folder)

    def restore(self, model: Any, folder: Path) -> None:
        """Take the trained weights back; needs room for a second copy of the model meanwhile.

        Raises:
            UserError: the artifact is of another model.
        """
        restore_weights(model, folder)


def build(options: NoOptions, context: Context) -> FullAdapter:
    """Builder of the adapter `full`."""
    return FullAdapter()
