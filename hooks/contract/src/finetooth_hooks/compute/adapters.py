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

    An adapter derives from `finetooth_hooks.AdapterBase`, where `low_rank` returns None and methods of capabilities
    raise errors.
    """

    @property
    def capabilities(self) -> frozenset[str]:
        """Its optional abilities, from `finetooth_hooks.capabilities.ADAPTER`."""
        ...

    def trained_parameters(self, facts: ModelFacts, parameters: int) -> int:
        """The number of trained parameters, for the memory estimate; `parameters` is the size of the base."""
        ...

    def held_bytes(self, facts: ModelFacts, precision: str) -> int:
        """Bytes besides the base and the trained parameters, in a run of a precision, for the memory estimate: its own
        frozen matrices, copies of weights that it changes between steps."""
        ...

    def kept_bytes(self, facts: ModelFacts, parameters: int) -> int:
        """Bytes of a saved state besides the currently trained parameters and their optimizer state, for the estimates
        of memory and disk: weights that are paused, weights that it changes between steps; `parameters` is the size of
        the base."""
        ...

    def token_bytes(self, facts: ModelFacts, precision: str) -> float:
        """Bytes per token that its own modules save for the backward pass in a decoder layer, on average, if a backend
        calls them directly (`low_rank` is None), for the memory estimate."""
        ...

    def beginning_bytes(self, facts: ModelFacts) -> int:
        """Temporary bytes of `apply` besides the model, for the memory estimate: initial sums over rows."""
        ...

    def rate_shares(self, names: Sequence[str]) -> Mapping[str, float]:
        """Factors on the optimizer's learning rate, by the name of the trained parameter; only those other than 1."""
        ...

    def at_step(self, model: Any, step: int, seed: int) -> None:
        """Change the model to its form after `step` updates, as far as that depends only on the number (which layers
        train). Called after building an engine and after loading a state. Capability `changes`.

        Args:
            seed: of the engine; random choices depend on it and the step.
        """
        ...

    def after_step(self, model: Any, step: int, seed: int) -> Mapping[str, float]:
        """Change the model after update number `step`, from 1; trained parameters hold their exact values meanwhile.
        Capability `changes`.

        Returns:
            For parameters, by name, with changed optimizer state: the share of its numbers to keep, the largest in
            magnitude; 0 resets it.
        """
        ...

    def held(self, model: Any) -> Mapping[str, Any]:
        """Frozen tensors that `after_step` changes; every state includes them. Capability `changes`."""
        ...

    def rate_factor(self, step: int) -> float:
        """Factor on the scheduled learning rate of the update after `step` updates, for repeated warm-up. Capability
        `changes`."""
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
        """The computation of an adapted module, if it is now (mode, switched off) only its base and a low-rank
        product; a backend may then compute it together with its neighbours. None: the module is called directly."""
        ...

    def additions(self, folder: Path) -> Mapping[str, Addition] | None:
        """The low-rank matrices of an artifact, of any rank and targets, by the linear modules' paths in the base; None
        if it has more than that. UserError: it cannot be read. Capability `additions`."""
        ...

    def fold(
        self, model: Any, folder: Path, *, precision: str, device: str, pad_id: int | None = None,
        quantizer: Quantizer | None = None,
    ) -> Any:  # fmt: skip
        """`model`, a base in fp32 or as the run stored it, merged with the artifact in `folder`, without adapter
        modules, in a precision and on a device; so a run with the adapter can be the model of another. Capability
        `fold`.

        Args:
            pad_id: of the tokenizer. With a scalar head in the artifact, the result is a language model with the head
                as `score`.
            quantizer: quantises the linear weights of the result; None: plain numbers.

        Raises:
            UserError: the artifact was made for another model, or its file is damaged.
        """
        ...

    def fold_tensors(self, tensors: ModelTensors, folder: Path) -> ModelTensors | None:
        """The same for a base that is read tensor by tensor; sums are in fp32. None if the artifact is more than
        matrices of linear modules, or changes both ends of a tied pair. Capability `fold_tensors`.

        Raises:
            UserError: the artifact was made for another model, or its file is damaged.
        """
        ...

    def folded_config(self, folder: Path) -> Mapping[str, Any]:
        """Changes of the merged model's config from the base's, such as `architectures` and `id2label` of a classifier;
        read from the artifact, without weights."""
        ...

    def export(self, model: Any, folder: Path, info: ModelInfo) -> None:
        """Write the artifact: peft's layout for an adapter, transformers' for whole weights.

        Args:
            model: from `apply`; for an engine with a scalar head, a classifier of the same modules and the head
                (`finetooth_torchshared.classifiers`).
        """
        ...

    def restore(self, model: Any, folder: Path) -> None:
        """Load the trained weights from an artifact of `export` into a model of `apply`.

        Args:
            model: as for `export`.

        Raises:
            UserError: the artifact is of another adapter or another shape; the message names what differs.
        """
        ...
