"""The adapter that trains the top of a model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from finetooth_hooks import Options, RecipeError
from finetooth_hooks.protocols import ModelFacts
from finetooth_torchshared.whole_weights import WholeModelAdapter
from pydantic import Field, model_validator


class FreezeOptions(Options):
    """Options of `freeze`."""

    layers: int = Field(default=0, ge=0)
    """Number of decoder layers that train, counted from the top."""
    unfrozen_parameters: list[str] = Field(default_factory=list)
    """Further parameters that train: regular expressions that match the beginning of a parameter's path in the model if
    they begin with `^` (`^model.language_model.*`, `^lm_head.*`), or else any part of it."""
    norm: bool = False
    """Whether the final norm trains too."""
    head: bool = False
    """Whether the head trains too, and with it an embedding that shares its weight."""

    @model_validator(mode="after")
    def _trains_something(self) -> FreezeOptions:
        if not self.layers and not self.unfrozen_parameters:
            raise ValueError("nothing would train: set layers, or unfrozen_parameters")
        for pattern in self.unfrozen_parameters:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"unfrozen_parameters: {pattern!r} is not a regular expression: {error}") from error
        return self


@dataclass(frozen=True)
class FreezeAdapter(WholeModelAdapter):
    """`protocols.Adapter` that freezes everything below the top layers."""

    options: FreezeOptions

    def trained_parameters(self, facts: ModelFacts, parameters: int) -> int:
        """Exact for models of equal decoder layers with a final norm of one weight per hidden unit and a head without
        bias. With `unfrozen_parameters` an upper bound: all parameters outside of towers.

        Raises:
            RecipeError: the model has fewer layers, or new tokens whose embeddings would not train. With
                `unfrozen_parameters` only `apply`, which has the parameters' names, can check.
        """
        self._check(facts.layers)
        self._check_new_tokens(facts)
        parameters -= facts.tower_parameters
        if self.options.unfrozen_parameters:
            return parameters
        embedding = facts.vocab_size * facts.hidden_size
        in_layers = parameters - embedding * (1 if facts.tied else 2) - facts.hidden_size
        trained = in_layers // facts.layers * self.options.layers
        return trained + facts.hidden_size * self.options.norm + embedding * self.options.head

    def apply(self, model: Any, facts: ModelFacts, generator: np.random.Generator) -> Any:
        """The model itself, with the top unfrozen.

        Raises:
            RecipeError: the model has fewer layers, no final norm although it should train, no parameter that a pattern
                matches, or new tokens whose rows in embedding or head would not train.
        """
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        layers = list(model.get_submodule(facts.layer_path))
        self._check(len(layers))
        tops = layers[len(layers) - self.options.layers :]
        if self.options.norm:
            tops.append(_final_norm(model.get_submodule(facts.body)))
        if self.options.head:
            tops.append(model.get_submodule(facts.head.module))
        for module in tops:
            for parameter in module.parameters():
                parameter.requires_grad_(parameter.is_floating_point())
        for pattern in self.options.unfrozen_parameters:
            _unfreeze(model, pattern)
        if facts.new_tokens:
            _check_ends(model, facts)
        return model

    def _check_new_tokens(self, facts: ModelFacts) -> None:
        """Refuse new tokens that cannot train, if the parameters' names are known without the model."""
        if not facts.new_tokens:
            return
        head = f"{facts.head.module}.weight"
        head_trains = self.options.head or self._names(head)
        embedding = f"{facts.body}.{facts.block.embedding}.weight" if facts.block else ""
        # the name of the embedding is unknown for some models: a pattern may match it
        trains = self._names(embedding) if embedding else bool(self.options.unfrozen_parameters)
        if not (trains or (facts.tied and head_trains)):
            raise _untrained_error(facts, embedding)
        if not (head_trains or facts.tied):
            raise _untrained_error(facts, head)

    def _names(self, parameter: str) -> bool:
        return any(re.search(pattern, parameter) for pattern in self.options.unfrozen_parameters)

    def _check(self, layers: int) -> None:
        if self.options.layers > layers:
            raise RecipeError(
                "adapter.layers",
                f"{self.options.layers} layers should train, but the model has only {layers}",
                action=f"set it to at most {layers}, or train the whole model",
            )


def _check_ends(model: Any, facts: ModelFacts) -> None:
    """Check that embedding and head train, so that the rows of new tokens do."""
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    for end in (model.get_input_embeddings(), model.get_output_embeddings()):
        if end is not None and not end.weight.requires_grad:
            raise _untrained_error(facts, named[id(end.weight)])


def _untrained_error(facts: ModelFacts, parameter: str) -> RecipeError:
    """The error for new tokens whose rows in a parameter would not train."""
    whose = "the new token" if len(facts.new_tokens) == 1 else f"the {len(facts.new_tokens)} new tokens"
    if parameter == f"{facts.head.module}.weight":
        what, cure = "the head's rows", "set adapter.head: true"
    else:
        what, cure = "the embeddings", f"add {parameter or 'the embedding'} to adapter.unfrozen_parameters"
    return RecipeError(
        "model.added_tokens",
        f"{what} of {whose} would not train: adapter freeze leaves {parameter or 'the embedding'} as it is",
        action=f"{cure}, or choose another adapter",
    )


def _unfreeze(model: Any, pattern: str) -> None:
    named = dict(model.named_parameters(remove_duplicate=False))  # includes a shared parameter under each of its names
    matches = [parameter for name, parameter in named.items() if re.search(pattern, name)]
    if not matches:
        tops = sorted({".".join(name.split(".")[:2]) for name in named})
        raise RecipeError(
            "adapter.unfrozen_parameters",
            f"{pattern!r} matches no parameter of the model",
            action=f"begin with one of {', '.join(tops[:8])}",
        )
    for parameter in matches:
        parameter.requires_grad_(parameter.is_floating_point())


def _final_norm(body: Any) -> Any:
    """The final norm: the body's direct child that is a norm; norms of layers are deeper."""
    norms = [
        module for name, module in body.named_children() if "norm" in name or name.startswith(("ln_f", "final_layer"))
    ]
    if len(norms) != 1:
        names = ", ".join(name for name, _ in body.named_children())
        raise RecipeError(
            "adapter.norm", f"cannot tell which is the final norm among: {names}", action="set adapter.norm: false"
        )
    return norms[0]
