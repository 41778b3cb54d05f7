"""Adapters, which decide which parameters of a model train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from finetooth_hooks.compute.held import Addition
from finetooth_hooks.compute.quantizers import Quantizer
from finetooth_hooks.models import LowRank, ModelFacts, ModelInfo, ModelTensors


class Adapter(Protocol):
    """Decides which parameters of a model train.

    An adapter derives from `finetooth_hooks.AdapterBase`, where `low_rank` says None and what has a capability of its
    own refuses.
    """

    @property
    def capabilities(self) -> frozenset[str]:
        """Its optional abilities: words of `finetooth_hooks.capabilities.ADAPTER`."""
        ...

    def trained_parameters(self, facts: ModelFacts, parameters: int) -> int:
        """How many will train, for the memory estimate; `parameters` is the size of the base."""
        ...

    def held_bytes(self, facts: ModelFacts, precision: str) -> int:
        """Bytes that it holds in addition to the base and what trains, in a run of a precision, for the memory
        estimate: frozen matrices of its own, copies of weights that it changes between steps."""
        ...

    def kept_bytes(self, facts: ModelFacts, parameters: int) -> int:
        """Bytes of a saved state in addition to what trains at one time and its optimizer's state, for the estimates
        of memory and disk: weights that rest, weights that it changes between steps; `parameters` is the size of the
        base."""
        ...

    def token_bytes(self, facts: ModelFacts, precision: str) -> float:
        """Bytes for each token that its own modules keep in a decoder layer until backward, on average, where a backend
        calls them as they are (`low_rank` is None), for the memory estimate."""
        ...

    def beginning_bytes(self, facts: ModelFacts) -> int:
        """Bytes that `apply` holds for a moment in addition to the model, before anything trains, for the memory
        estimate: what is summed over rows to begin with."""
        ...

    def rate_shares(self, names: Sequence[str]) -> Mapping[str, float]:
        """Of the parameters that train, those whose learning rate is not the optimizer's: the factor on it, by name."""
        ...

    def at_step(self, model: Any, step: int, seed: int) -> None:
        """Make the model what it is after `step` updates, as far as that follows from the number alone (which layers
        train). Called when an engine is built, and when a state was taken back. Capability `changes`.

        Args:
            seed: of the engine; what is drawn is drawn by it and the step.
        """
        ...

    def after_step(self, model: Any, step: int, seed: int) -> Mapping[str, float]:
        """Change the model after update number `step`, the first being 1; what trains holds its exact values meanwhile.
        Capability `changes`.

        Returns:
            Parameters, by name, whose optimizer state changes: the share of its numbers that stay,
            those largest in magnitude; 0 forgets all of it.
        """
        ...

    def held(self, model: Any) -> Mapping[str, Any]:
        """Tensors that `after_step` changes and that do not train: they belong to every state. Capability `changes`."""
        ...

    def rate_factor(self, step: int) -> float:
        """Factor on the scheduled learning rate of the update that follows `step` updates, for warming up again.
        Capability `changes`."""
        ...

    def apply(self, model: Any, facts: ModelFacts, generator: np.random.Generator) -> Any:
        """The model to train: trained parameters require gradients, all others do not. New parameters are drawn from
        `generator`.

        Raises:
            RecipeError: a target matches nothing.
        """
        ...

    def disabled(self, model: Any) -> AbstractContextManager[None]:
        """Inside the `with` block, the model computes as the base does. Capability `disable`, which the entry states as
        `can_disable`."""
        ...

    def low_rank(self, module: Any) -> LowRank | None:
        """What a module of the adapted model computes, if it is at this moment (dropout, switched off) nothing but its
        base and a low-rank addition; then a backend may compute it together with its neighbours. None: the module is
        called as it is."""
        ...

    def additions(self, folder: Path) -> Mapping[str, Addition] | None:
        """What an artifact, of any rank and targets, adds to linear modules by their paths in the base; None where it
        is more than that. UserError: it cannot be read. Capability `additions`."""
        ...

    def fold(
        self, model: Any, folder: Path, *, precision: str, device: str, pad_id: int | None = None,
        quantizer: Quantizer | None = None,
    ) -> Any:  # fmt: skip
        """`model`, a base in fp32 or as the run stored it, with the artifact in `folder` folded in and nothing left of
        the adapter, in a precision and on a device; then a run with the adapter can be the model of another. Capability
        `fold`.

        Args:
            pad_id: of the tokenizer. Of an artifact with a scalar head the result is a language model that carries the
                head as `score`.
            quantizer: stores the linear weights of the result; None: they are plain numbers.

        Raises:
            UserError: the artifact was made for another model, or its file is damaged.
        """
        ...

    def fold_tensors(self, tensors: ModelTensors, folder: Path) -> ModelTensors | None:
        """The same for a base that is read tensor by tensor; sums are in fp32. None where the artifact is more than
        matrices other than linear modules, or reaches both ends of a tied pair. Capability `fold_tensors`.

        Raises:
            UserError: the artifact was made for another model, or its file is damaged.
        """
        ...

    def folded_config(self, folder: Path) -> Mapping[str, Any]:
        """What the config of a folded model says otherwise than the base's, such as `architectures` and `id2label` of
        a classifier; read from the artifact, without weights."""
        ...

    def export(self, model: Any, folder: Path, info: ModelInfo) -> None:
        """Write the artifact: peft's layout for an adapter, transformers' for whole weights.

        Args:
            model: what `apply` made; of an engine with a scalar head, a classifier of the same modules and the head
                (`finetooth_torchshared.classifiers`).
        """
        ...

    def restore(self, model: Any, folder: Path) -> None:
        """Take the trained weights back from an artifact that `export` wrote, into a model that `apply` made.

        Args:
            model: as for `export`.

        Raises:
            UserError: the artifact is of another adapter or another shape; the message names what differs.
        """
        ...
