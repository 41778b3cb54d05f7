"""Base of the adapters here: peft's layers over a frozen base, artifact, merging. peft is imported only with a model:
that takes seconds, and a check of a recipe does not need it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from finetooth_hooks import Context, Options, PlanError
from finetooth_hooks.protocols import ModelFacts, ModelInfo
from finetooth_modelfiles.sizes import read_once, shapes
from finetooth_modelfiles.targets import resolve
from finetooth_peftfiles import resuming
from finetooth_peftfiles.foldable import FoldableAdapter


class TargetOptions(Options):
    """Options of every adapter here."""

    targets: Literal["all-linear", "attention"] | list[str] = "all-linear"
    """Modules to adapt: `all-linear` (every linear module of the decoder layers), `attention` (those inside
    attention), or a list of names that end a module's path (`q_proj`, `mlp.up_proj`) or regular expressions that
    match whole paths."""
    resume_from: str | None = None
    """A run with such an adapter, or an adapter's folder: training begins with that adapter. Base, sizes and targets
    must be the same."""


@dataclass(frozen=True)
class PeftAdapter(FoldableAdapter):
    """`protocols.Adapter` over one of peft's tuners.

    `apply` returns the given model with its chosen modules replaced by peft's layers: paths such as `model.layers.0`
    stay valid. Trained parameters are float32 for any precision of the base.
    """

    kind: ClassVar[str]
    """peft's name of the adapter, `OFT`."""

    options: Any
    begins: Path | None = None
    """The artifact of the adapter to continue."""

    @property
    def capabilities(self) -> frozenset[str]:
        """See `protocols.Adapter`."""
        begins_apart = set() if self.begins is None else {"begins_apart"}
        return frozenset({"disable", "fold", *begins_apart})

    @abstractmethod
    def added(self, path: str, inputs: int, outputs: int) -> int:
        """Number of trained parameters of a module.

        Raises:
            RecipeError: the module's sizes do not suit the options.
        """

    @abstractmethod
    def kept(self, path: str, inputs: int, outputs: int) -> tuple[bool, int]:
        """Memory of peft's layer at a module per token until backward: whether it keeps the module's input, and the
        count of further numbers."""

    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """Settings of peft's config besides the modules, by peft's names; an artifact must have the same."""

    def first_number(self, name: str) -> float | None:
        """Initial value of every number of a parameter; None keeps peft's random values."""
        return 0.0

    @property
    def targets(self) -> Any:
        """Targets in the form of `resolve`."""
        return self.options.targets

    def trained_parameters(self, facts: ModelFacts, parameters: int) -> int:
        """Number of trained parameters; exact for layers built like Llama's. A linear module of another name counts as
        hidden to hidden."""
        if facts.new_tokens:
            raise PlanError(
                f"model.added_tokens: adapter {type(self).__name__} keeps their initial embeddings",
                action="choose adapter lora or full, which train them",
            )
        sizes = shapes(facts, self.targets)
        chosen = resolve(self.targets, facts, tuple(sizes)).modules
        return sum(self.added(path, *sizes[path]) for path in chosen)

    def token_bytes(self, facts: ModelFacts, precision: str) -> float:
        """See `protocols.Adapter`; a common input of several modules counts once."""
        sizes = shapes(facts, self.targets)
        chosen = resolve(self.targets, facts, tuple(sizes)).modules
        costs = {path: self.kept(path, *sizes[path]) for path in chosen}
        read = read_once([path for path, (reads, _) in costs.items() if reads], sizes)
        numbers = read + sum(beside for _, beside in costs.values())
        return numbers * (4 if precision == "fp32" else 2) / facts.layers

    def apply(self, model: Any, facts: ModelFacts, generator: np.random.Generator) -> Any:
        """See `layers.put_in`.

        Raises:
            RecipeError: a target matches nothing, or its sizes do not suit the options.
            UserError: the adapter to continue does not fit.
        """
        from finetooth_peft.layers import put_in

        return put_in(self, model, facts)

    @contextmanager
    def disabled(self, model: Any) -> Iterator[None]:
        """Inside the `with` block, the model computes as its base."""
        from finetooth_peftfiles.layers import switched_off

        with switched_off(model):
            yield

    def export(self, model: Any, folder: Path, info: ModelInfo) -> None:
        """Write `adapter_model.safetensors` and `adapter_config.json`; the base is named as other tools can load it."""
        from finetooth_peftfiles.artifact import write

        from finetooth_peft.layers import tensors_of

        write(model, folder, info, tensors=tensors_of(model))

    def restore(self, model: Any, folder: Path) -> None:
        """Restore the trained parameters from an artifact.

        Raises:
            UserError: the artifact belongs to another adapter, or has other sizes or modules.
        """
        from finetooth_peft.layers import take_back

        take_back(self, model, folder)


def begins_with(options: TargetOptions, context: Context, adapter: PeftAdapter) -> Path | None:
    """The artifact of `resume_from`, with all checks that need no weights of the base.

    Raises:
        RecipeError: the artifact is missing, or has another base, kind, size or choice of modules.
    """
    if options.resume_from is None:
        return None
    return resuming.begin(options.resume_from, context, adapter.kind, adapter.settings(), adapter.targets)
