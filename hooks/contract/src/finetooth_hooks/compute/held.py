"""Adapters that an engine holds in addition to its own weights, sampled in one batch (`Engine.hold`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Stack = Sequence[tuple[Path, float]]
"""Artifacts of adapters on one base, with weights: the base plus their weighted sum is computed."""


@dataclass(frozen=True)
class Addition:
    """An artifact's low-rank matrices for one linear module of its base: scale (x A^T) B^T.

    Attributes:
        a, b: (rank, inputs) and (outputs, rank), the artifact's tensors.
    """

    a: Any
    b: Any
    scale: float = 1.0


class HeldAdapter:
    """Weights of an adapter in addition to an engine's own, made by `Engine.hold` for its running batches.

    They do not change, even if the folder does; nor do the engine's own weights. Engines that hold adapters derive from
    it.

    Attributes:
        size: bytes that they take.
    """

    @property
    def size(self) -> int:
        return 0
