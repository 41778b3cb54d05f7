"""Adapters that an engine holds beside its own weights, to be sampled beside each other (`Engine.hold`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Stack = Sequence[tuple[Path, float]]
"""Artifacts of adapters of one base, each with its weight: what is computed with is the base and the weighted sum of
what they add."""


@dataclass(frozen=True)
class Addition:
    """What an artifact adds to one linear module of its base: scale (x A^T) B^T.

    Attributes:
        a, b: (rank, inputs) and (outputs, rank), the framework's tensors as the artifact has them.
    """

    a: Any
    b: Any
    scale: float = 1.0


class HeldAdapter:
    """Weights of an adapter beside an engine's own, made by `Engine.hold` for its running batches. They stay what they
    were read as, whatever becomes of the folder, and the engine's own stay what they are. Engines that hold some derive
    from it.

    Attributes:
        size: bytes that they take.
    """

    @property
    def size(self) -> int:
        return 0
