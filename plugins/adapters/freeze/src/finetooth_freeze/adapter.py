"""The adapter that lets the top of a model train."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks import Context, Options, PlanError, RecipeError
from finetooth_hooks.protocols import ModelFacts, ModelInfo
from finetooth_hooks.whole_weights import export_weights, restore_weights
from pydantic import Field


class FreezeOptions(Options):
    """Options of `freeze`."""

    layers: int = Field(ge=1)
    """How many decoder layers train, counted from the top."""
    norm: bool = False
    """The final norm trains too."""
    head: bool = False
    """The head trains too; where it shares its weight with the embedding, so does that."""


@dataclass(frozen=True)
class FreezeAdapter:
    """`protocols.Adapter` that freezes everything below the top layers."""

    options: FreezeOptions

    def trained_parameters(self, facts: ModelFacts, parameters: int) -> int:
        """Exact for models of equal decoder layers with a final norm of one weight per hidden unit and a head without
        bias.

        Raises:
            RecipeError: the model has fewer layers.
        """
        self._check(facts.layers)
        embedding = facts.vocab_size * facts.hidden_size
        in_layers = parameters - embedding * (1 if facts.tied else 2) - facts.hidden_size
        trained = in_layers // facts.layers * self.options.layers
        return trained + facts.hidden_size * self.options.norm + embedding * self.options.head

    def apply(self, model: Any, facts: ModelFacts, generator: np.random.Generator) -> Any:
        """The model itself, with the top unfrozen.

        Raises:
            RecipeError: it has fewer layers, or no final norm where one should train.
        """
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        layers = list(model.get_submodule(facts.layer_path))
        self._check(len(layers))
        tops = layers[-self.options.layers :]
        if self.options.norm:
            tops.append(_final_norm(model.get_submodule(facts.body)))
        if self.options.head:
            tops.append(model.get_submodule(facts.head.module))
        for module in tops:
            for parameter in module.parameters():
                parameter.requires_grad_(parameter.is_floating_point())
        return model

    def disabled(self, model: Any) -> AbstractContextManager[None]:
        """
        Raises:
            PlanError: always; the base is overwritten as it trains.
        """
        raise PlanError(
            "adapter: training layers of the base overwrites it, so it cannot serve as its own reference",
            action="choose an adapter that can be disabled, such as one of low rank",
        )

    def export(self, model: Any, folder: Path, info: ModelInfo) -> None:
        """Write a transformers folder with all weights."""
        export_weights(model, folder)

    def restore(self, model: Any, folder: Path) -> None:
        """Take the trained weights back; needs room for a second copy of the model meanwhile.

        Raises:
            UserError: the artifact is of another model.
        """
        restore_weights(model, folder)

    def _check(self, layers: int) -> None:
        if self.options.layers > layers:
            raise RecipeError(
                "adapter.layers",
                f"{self.options.layers} layers shall train, but the model has {layers}",
                action=f"set it to at most {layers}, or train the whole model",
            )


def _final_norm(body: Any) -> Any:
    """The body's own child that is called a norm: its layers' norms lie deeper."""
    found = [
        module for name, module in body.named_children() if "norm" in name or name.startswith(("ln_f", "final_layer"))
    ]
    if len(found) != 1:
        names = ", ".join(name for name, _ in body.named_children())
        raise RecipeError(
            "adapter.norm", f"cannot tell which is the final norm among: {names}", action="set adapter.norm: false"
        )
    return found[0]


def build(options: FreezeOptions, context: Context) -> FreezeAdapter:
    """Builder of the adapter `freeze`."""
    return FreezeAdapter(options)
