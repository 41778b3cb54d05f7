"""Adapters that an engine holds in addition to its own weights, sampled in one batch (`Engine.hold`)."""

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
    """Weights of an adapter in addition to an engine's own, made by `Engine.hold` for its running batches.

    They stay as they were read, even if the folder changes, and the engine's own stay the same. Engines that hold
    adapters derive from it.

    Attributes:
        size: bytes that they take.
    """

    @property
    def size(self) -> int:
        return 0
