"""The adapter that lets the top of a model train."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from finetooth_hooks import Context, Options, PlanError, RecipeError, UserError
from finetooth_hooks.protocols import ModelFacts, ModelInfo
from pydantic import Field
from safetensors import SafetensorError


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
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(str(folder))
        # safetensors makes its files private; they are as public as those beside them
        for path in folder.glob("*.safetensors"):
            path.chmod((folder / "config.json").stat().st_mode)

    def restore(self, model: Any, folder: Path) -> None:
        """Take the trained weights back; needs room for a second copy of the model meanwhile.

        Raises:
            UserError: the artifact is of another model.
        """
        saved = _saved_weights(model, folder)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(saved[name])

    def _check(self, layers: int) -> None:
        if self.options.layers > layers:
            raise RecipeError(
                "adapter.layers",
                f"{self.options.layers} layers shall train, but the model has {layers}",
                action=f"set it to at most {layers}, or train the whole model",
            )


def _saved_weights(model: Any, folder: Path) -> dict[str, Any]:
    """Parameters of the artifact by name, read by transformers (which knows how it renames and splits them).

    Raises:
        UserError: it is no transformers folder, or one of another model.
    """
    other = "name the artifact of a run with this model and adapter"
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        raise UserError(f"{folder}: no config.json with safetensors beside it", action=other)
    try:
        # into this model's shape; what differs is collected, so that the message can name it
        saved, info = type(model).from_pretrained(
            str(folder),
            config=copy.deepcopy(model.config),
            dtype="auto",
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be read: {str(error).splitlines()[0]}", action=other) from error
    for problem in ("mismatched_keys", "missing_keys", "unexpected_keys"):
        if info[problem]:
            raise UserError(
                f"{folder} is of another model: {problem.replace('_keys', '')} {sorted(map(str, info[problem]))[0]}",
                action=other,
            )
    return dict(saved.named_parameters())


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
