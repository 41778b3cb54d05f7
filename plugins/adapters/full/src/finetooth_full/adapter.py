"""The adapter for full fine-tuning, which trains the model itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from finetooth_hooks import Options
from finetooth_hooks.protocols import ModelFacts
from finetooth_torchshared.whole_weights import WholeModelAdapter


class FullOptions(Options):
    """Options of `full`."""

    freeze_mm_modules: bool = False
    """Whether to freeze the modules that read images or sound: the towers in front of the decoder and their projections
    into it. For training on text alone, or on few images."""


@dataclass(frozen=True)
class FullAdapter(WholeModelAdapter):
    """A `protocols.Adapter` that trains every parameter, or all except those of the towers."""

    overwrites = "full fine-tuning overwrites the base"

    options: FullOptions = field(default_factory=FullOptions)

    def trained_parameters(self, facts: ModelFacts, parameters: int) -> int:
        """All parameters except those of frozen towers."""
        return parameters - (facts.tower_parameters if self.options.freeze_mm_modules else 0)

    def apply(self, model: Any, facts: ModelFacts, generator: np.random.Generator) -> Any:
        """The model itself; every floating-point parameter trains, unless the options freeze it."""
        frozen = tuple(f"{path}." for path in facts.towers) if self.options.freeze_mm_modules else ()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.is_floating_point() and not name.startswith(frozen))
        return model
