"""What the adapters here share: peft's layers over a frozen base, their artifact, folding. Nothing imports peft before
a model is at hand: that takes seconds, and a check of a recipe needs none of it."""

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
    """What every adapter here has."""

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

    The model that `apply` returns is the one it was given, its chosen modules replaced by peft's layers: paths such as
    `model.layers.0` stay valid. What trains is float32 whatever the base is held in.
    """

    kind: ClassVar[str]
    """peft's name of it, `OFT`."""

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
        """Parameters that train at a module.

        Raises:
            RecipeError: the module's sizes do not suit the options.
        """

    @abstractmethod
    def kept(self, path: str, inputs: int, outputs: int) -> tuple[bool, int]:
        """What peft's layer at a module keeps of each token until backward: whether that is what the module reads, and
        how many numbers in addition."""

    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """What peft's config says besides the modules; options by their names there, which an artifact must share."""

    def first_number(self, name: str) -> float | None:
        """What every number of a parameter begins with; None leaves what peft drew."""
        return 0.0

    @property
    def targets(self) -> Any:
        """As `resolve` takes them."""
        return self.options.targets

    def trained_parameters(self, facts: ModelFacts, parameters: int) -> int:
        """Exact for layers built like Llama's; a linear module of another name counts as hidden to hidden."""
        if facts.new_tokens:
            raise PlanError(
                f"model.added_tokens: adapter {type(self).__name__} keeps their initial embeddings",
                action="choose adapter lora or full, which train them",
            )
        sizes = shapes(facts, self.targets)
        chosen = resolve(self.targets, facts, tuple(sizes)).modules
        return sum(self.added(path, *sizes[path]) for path in chosen)

    def token_bytes(self, facts: ModelFacts, precision: str) -> float:
        """See `protocols.Adapter`; what several modules of a block read is kept once."""
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
        """Take what trained back from an artifact.

        Raises:
            UserError: it is of another adapter, or of other sizes or modules.
        """
        from finetooth_peft.layers import take_back

        take_back(self, model, folder)


def begins_with(options: TargetOptions, context: Context, adapter: PeftAdapter) -> Path | None:
    """The artifact that `resume_from` names, checked as far as that takes no weights of the base.

    Raises:
        RecipeError: there is none, or one of another base, kind, size or choice of modules.
    """
    if options.resume_from is None:
        return None
    return resuming.begin(options.resume_from, context, adapter.kind, adapter.settings(), adapter.targets)
