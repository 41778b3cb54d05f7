"""LISA (Pan et al., 2024, arXiv:2403.17919, algorithm 1): embedding, final norm and head always train, and a few random
decoder layers, chosen again after a number of steps.

Gradients and optimizer states exist only for trained parameters; a layer loses its state at the end of its turn. The
engine's seed and the number of the turn determine the layers, so a resumed run has the same ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks import Options, RecipeError
from finetooth_hooks.protocols import ModelFacts
from finetooth_torchshared.whole_weights import WholeModelAdapter
from pydantic import Field

LAYERS = "lisa_layers"
"""Attribute of an adapted model with the path of the decoder layers."""


class LisaOptions(Options):
    """Options of `lisa`."""

    layers: int = Field(default=2, ge=1)
    """Number of decoder layers that train at a time."""
    every: int = Field(default=20, ge=1)
    """Optimizer steps until other layers are drawn."""


@dataclass(frozen=True)
class LisaAdapter(WholeModelAdapter):
    """A `protocols.Adapter` whose decoder layers train in turns."""

    capabilities = frozenset({"changes"})

    options: LisaOptions

    def trained_parameters(self, facts: ModelFacts, parameters: int) -> int:
        """Number of parameters that train at a time. Exact for models of equal decoder layers.

        Raises:
            RecipeError: the model has fewer layers than `layers`.
        """
        self._check(facts.layers)
        parameters -= facts.tower_parameters
        return parameters - self._at_rest(facts, parameters)

    def held_bytes(self, facts: ModelFacts, precision: str) -> int:
        """The fp32 master weights of resting layers, if the model computes in fewer bits."""
        if precision == "fp32":
            return 0
        a_layer = sum(a * b for a, b in _matrices(facts))
        return 4 * a_layer * (facts.layers - self.options.layers)

    def kept_bytes(self, facts: ModelFacts, parameters: int) -> int:
        """The resting layers, in fp32, since their turn has been or may come."""
        return 4 * self._at_rest(facts, parameters - facts.tower_parameters)

    def apply(self, model: Any, facts: ModelFacts, generator: np.random.Generator) -> Any:
        """The model itself; all parameters that may train require gradients until the first turn begins.

        Raises:
            RecipeError: the model has fewer layers.
        """
        self._check(len(list(model.get_submodule(facts.layer_path))))
        towers = tuple(f"{path}." for path in facts.towers)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.is_floating_point() and not name.startswith(towers))
        model.__dict__[LAYERS] = facts.layer_path
        return model

    def at_step(self, model: Any, step: int, seed: int) -> None:
        """Train only the layers of the step's turn."""
        path = model.__dict__[LAYERS]
        layers = list(model.get_submodule(path))
        turn = draw_layers(len(layers), self.options.layers, step // self.options.every, seed)
        for number, layer in enumerate(layers):
            for parameter in layer.parameters():
                parameter.requires_grad_(parameter.is_floating_point() and number in turn)

    def after_step(self, model: Any, step: int, seed: int) -> Mapping[str, float]:
        """Begin the next turn if due; the optimizer drops the states of layers whose turn has ended."""
        if step % self.options.every:
            return {}
        path = model.__dict__[LAYERS]
        count = len(list(model.get_submodule(path)))
        number = step // self.options.every
        ended = draw_layers(count, self.options.layers, number - 1, seed) - draw_layers(
            count, self.options.layers, number, seed
        )
        self.at_step(model, step, seed)
        inside = re.compile(rf"{re.escape(path)}\.(\d+)\.")
        named = ((name, inside.match(name)) for name, _ in model.named_parameters())
        return {name: 0.0 for name, match in named if match is not None and int(match[1]) in ended}

    def held(self, model: Any) -> Mapping[str, Any]:
        """Empty: resting layers are among the trained parameters."""
        return {}

    def rate_factor(self, step: int) -> float:
        """1: the scheduled rate is unchanged."""
        return 1.0

    def restore(self, model: Any, folder: Path) -> None:
        """Restore all weights, also of resting layers; needs memory for a second copy of the model.

        Raises:
            UserError: the artifact belongs to another model.
        """
        resting = list(model.get_submodule(model.__dict__[LAYERS]).parameters())
        before = [parameter.requires_grad for parameter in resting]
        for parameter in resting:
            parameter.requires_grad_(parameter.is_floating_point())
        try:
            super().restore(model, folder)
        finally:
            for parameter, trains in zip(resting, before, strict=True):
                parameter.requires_grad_(trains)

    def _at_rest(self, facts: ModelFacts, parameters: int) -> int:
        """Parameters of the layers that do not train at one time."""
        embedding = facts.vocab_size * facts.hidden_size
        in_layers = parameters - embedding * (1 if facts.tied else 2) - facts.hidden_size
        return in_layers // facts.layers * (facts.layers - self.options.layers)

    def _check(self, layers: int) -> None:
        if self.options.layers > layers:
            raise RecipeError(
                "adapter.layers",
                f"{self.options.layers} layers should train at a time, but the model has only {layers}",
                action=f"set it to at most {layers}, or train the whole model",
            )


def draw_layers(layers: int, count: int, turn: int, seed: int) -> frozenset[int]:
    """The layers that train in a turn, a uniform random choice."""
    generator = np.random.default_rng([seed, turn])
    return frozenset(int(number) for number in generator.choice(layers, size=count, replace=False))


def _matrices(facts: ModelFacts) -> list[tuple[int, int]]:
    from finetooth_toolbox.llama_shape import linear_shapes

    known = linear_shapes(facts)
    names = [name.rsplit(".", 1)[-1] for name in facts.linear_targets]
    return [known.get(name, (facts.hidden_size, facts.hidden_size)) for name in names]
