"""What a provider of kernels says that it can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Serves:
    """What a provider of kernels can do of one operation.

    Attributes:
        operation: its name: `rms_norm`.
        devices: types of devices, as the framework calls them: `cpu`, `cuda`; empty: every one.
        dtypes: of what it is given: `fp32`, `bf16`, `fp16`, `fp64`.
        backward: whether gradients go through it.
        result: the dtype of what it returns, in training and in scoring alike: that of what it is given (`input`), or
            `full`, which is fp32, and fp64 for fp64.
        rank: `auto` takes the highest that can serve; None: it must be picked by name.
        features: what it makes use of that the operation leaves open; see the operation.
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
