"""Declarations of a provider of kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Serves:
    """What a provider of kernels can do of one operation.

    Attributes:
        operation: its name: `rms_norm`.
        devices: types of devices, by the framework's names: `cpu`, `cuda`; empty: every one.
        dtypes: of inputs: `fp32`, `bf16`, `fp16`, `fp64`.
        backward: whether gradients pass through it.
        result: dtype of its results, in training and scoring: the inputs' (`input`), or `full`, which is fp32, and fp64
            for fp64.
        rank: `auto` takes the highest usable one; None: it must be picked by name.
        features: optional parts of the operation that it uses; see the operation.
    """

    operation: str
    devices: frozenset[str] = frozenset()
    dtypes: frozenset[str] = frozenset({"fp32", "bf16", "fp16"})
    backward: bool = True
    result: Literal["input", "full"] = "input"
    rank: int | None = 0
    features: frozenset[str] = frozenset()

    def __str__(self) -> str:
        where = " ".join(sorted(self.devices)) or "any device"
        backward = "" if self.backward else "; no gradients"
        rank = "by name only" if self.rank is None else f"rank {self.rank}"
        return f"{self.operation} ({where}; {' '.join(sorted(self.dtypes))}{backward}; {rank})"
