"""The adapter that adapts nothing: the whole model trains."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks import Context, Options, PlanError
from finetooth_hooks.bases import AdapterBase
from finetooth_hooks.protocols import ModelFacts, ModelInfo
from finetooth_torchshared.whole_weights import export_weights, restore_weights


class FullOptions(Options):
    """Options of `full`."""

    freeze_mm_modules: bool = False
    """Freeze what reads images or sound: the towers in front of the decoder and what joins them to it. For training
    on text alone, and where there are few images."""


@dataclass(frozen=True)
class FullAdapter(AdapterBase):
    """`protocols.Adapter` that trains every parameter, or all but those of the towers."""

    options: FullOptions = field(default_factory=FullOptions)

    def trained_parameters(self, facts: ModelFacts, parameters: int) -> int:
        """All of them, less those of frozen towers."""
        return parameters - (facts.tower_parameters if self.options.freeze_mm_modules else 0)

    def apply(self, model: Any, facts: ModelFacts, generator: np.random.Generator) -> Any:
        """The model itself, every floating-point parameter trainable that is not frozen by the options."""
        frozen = tuple(f"{path}." for path in facts.towers) if self.options.freeze_mm_modules else ()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.is_floating_point() and not name.startswith(frozen))
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


def build(options: FullOptions, context: Context) -> FullAdapter:
    """Builder of the adapter `full`."""
    return FullAdapter(options)
