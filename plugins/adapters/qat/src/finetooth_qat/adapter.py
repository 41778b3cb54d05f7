"""Trains every parameter, with linear modules that compute with quantised weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks import Context, Options, PlanError
from finetooth_hooks.protocols import ModelFacts, ModelInfo, Quantizer
from finetooth_torchshared.whole_weights import WholeModelAdapter


class QatOptions(Options):
    """Options of `qat`."""

    format: str | Mapping[str, Any] = "int4"
    """Format in which the weights will be stored: a name or a mapping with options, as in a recipe's `quantization`."""


@dataclass(frozen=True)
class QatAdapter(WholeModelAdapter):
    """`protocols.Adapter` of quantisation-aware training (Jacob et al., 2018, arXiv:1712.05877, section 3).

    Weights stay plain numbers. Each pass rounds them to the format's levels, and the gradient of a rounded weight is
    used for the weight itself (Bengio et al., 2013, arXiv:1308.3432, section 4).
    """

    capabilities = frozenset({"rounds"})
    overwrites = "training of every weight overwrites the base"

    quantizer: Quantizer
    context: Context

    def trained_parameters(self, facts: ModelFacts, parameters: int) -> int:
        """All parameters."""
        return parameters

    def apply(self, model: Any, facts: ModelFacts, generator: np.random.Generator) -> Any:
        """The model itself; linear modules that the quantizer supports compute with rounded weights.

        Raises:
            RecipeError: the quantizer supports no linear module of the model.
        """
        from finetooth_qat.rounding import round_weights

        round_weights(model, self.quantizer)
        return model.requires_grad_(True)

    def export(self, model: Any, folder: Path, info: ModelInfo) -> None:
        """Write a transformers folder of the rounded weights: the result computes as in training, and `quantization`
        with the same format finds the same levels."""
        from finetooth_qat.rounding import converted

        with converted(model) as moved:
            super().export(model, folder, info)
        self.context.note(
            f"adapter: the artifact holds weights on the levels of {self.quantizer.stored.name}, {moved:.2%} away from "
            "those that trained (root mean square); it computes what was evaluated",
            topic="qat",
        )


def build(options: QatOptions, context: Context) -> QatAdapter:
    """Builder of the adapter `qat`.

    Raises:
        PlanError: the format needs more than the weights, such as calibration data.
    """
    quantizer = context.build("quantizer", options.format, setting="adapter.format")
    if "calibrate" in quantizer.capabilities:
        raise PlanError(
            f"adapter.format: {quantizer.stored.name} is computed once from what the modules read, so qat cannot "
            "train for it",
            action="choose int4, int8 or mxfp4",
        )
    return QatAdapter(quantizer, context)
