"""What a server must do for a remote engine, in any protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from finetooth_hooks import Backward, Datum, Generated, Sampling, Stepped
from finetooth_hooks.engine import StepSettings
from numpy.typing import NDArray

Json = Mapping[str, Any]


@dataclass(frozen=True)
class ModelSizes:
    """Facts of a model at a server; 0 if the server does not say."""

    parameters: int = 0
    trained: int = 0


class Trainer(Protocol):
    """A model at a server."""

    protocol: str
    """The protocol: `rest` or `tinker`."""

    def create(self) -> ModelSizes:
        """Make the model; called once, before anything else.

        Raises:
            UserError: the server refuses it.
        """
        ...

    def score(self, data: Sequence[Datum]) -> tuple[list[NDArray[Any]], int]:
        """Log-probabilities of targets in training mode, and a number for `backward`."""
        ...

    def backward(self, number: int, data: Sequence[Datum], grads: Sequence[NDArray[np.float32]]) -> Backward:
        """Accumulate gradients from dL/dlogprob."""
        ...

    def step(self, number: int, settings: StepSettings) -> Stepped:
        """Do update number `number` with these settings."""
        ...

    def zero_grad(self) -> None: ...

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, version: int) -> Generated:
        """Sample from the current weights; `version` changes whenever they change."""
        ...

    def logprobs(self, data: Sequence[Datum], role: str) -> list[NDArray[np.float32]]: ...

    def save(self, name: str) -> Json:
        """Save the training state at the server; return JSON for `load`."""
        ...

    def load(self, kept: Json, *, optimizer: bool) -> None:
        """Load what `save` saved, or only its weights, or those of `export`."""
        ...

    def export(self, name: str, path: Path) -> Json:
        """Write the artifact into the folder; return JSON with which `load` loads its weights."""
        ...

    def close(self) -> None:
        """Release the model; what was saved stays."""
        ...
