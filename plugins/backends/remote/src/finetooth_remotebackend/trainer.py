"""What a server must be able to do for a remote engine, whatever it speaks."""

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
    """Facts of a model at a server; 0 where it does not say."""

    parameters: int = 0
    trained: int = 0


class Trainer(Protocol):
    """A model at a server."""

    protocol: str
    """What it speaks: `rest`, `tinker`."""

    def create(self) -> ModelSizes:
        """Make the model; called once, before anything else.

        Raises:
            UserError: the server does not take it.
        """
        ...

    def score(self, data: Sequence[Datum]) -> tuple[list[NDArray[Any]], int]:
        """Log-probabilities of targets while training, and a number for `backward`."""
        ...

    def backward(self, number: int, data: Sequence[Datum], grads: Sequence[NDArray[np.float32]]) -> Backward:
        """Accumulate gradients from dL/dlogprob."""
        ...

    def step(self, number: int, settings: StepSettings) -> Stepped:
        """Update number `number`, with these numbers."""
        ...

    def zero_grad(self) -> None: ...

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, version: int) -> Generated:
        """Sample from the weights as they are; `version` is another number whenever they are others."""
        ...

    def logprobs(self, data: Sequence[Datum], role: str) -> list[NDArray[np.float32]]: ...

    def save(self, name: str) -> Json:
        """Keep everything that trains, at the server; what `load` takes, JSON."""
        ...

    def load(self, kept: Json, *, optimizer: bool) -> None:
        """Take what `save` kept, or of it, or of `export`, the weights alone."""
        ...

    def export(self, name: str, path: Path) -> Json:
        """Write the artifact into the folder; what `load` takes for its weights."""
        ...

    def close(self) -> None:
        """The model is not needed any more; what was kept stays."""
        ...
