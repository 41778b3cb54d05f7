"""The adapter that adapts nothing: the whole model trains."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from finetooth_hooks import Context, NoOptions, PlanError, UserError
from finetooth_hooks.protocols import ModelFacts, ModelInfo
from safetensors import SafetensorError


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


def build(options: NoOptions, context: Context) -> FullAdapter:
    """Builder of the adapter `full`."""
    return FullAdapter()
