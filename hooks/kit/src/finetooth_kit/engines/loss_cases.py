"""Random data for losses, made from what a loss declares: S sequences of T targets in float64."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from finetooth_hooks.compute.losses import LossData
from finetooth_hooks.entries import Together
from numpy.typing import NDArray

Values = NDArray[Any]
SEQUENCES, TARGETS, VOCABULARY, HIDDEN = 6, 5, 7, 4


def numpy_array(values: Values) -> Any:
    """A read-only float64 (int64, bool) array: a loss that writes into its input raises."""
    copy = np.array(values)
    copy.flags.writeable = False
    return copy


def torch_array(values: Values) -> Any:
    """A torch tensor of the same type."""
    return sys.modules["torch"].as_tensor(np.array(values))


def mlx_array(values: Values) -> Any:
    """An MLX array; floats become float32."""
    values = values.astype(np.float32) if values.dtype.kind == "f" else values
    return sys.modules["mlx.core"].array(np.array(values))


Convert = Callable[[Values], Any]


def _seeded(*key: str | int) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(str(part).encode()) for part in key])


class OnDemand(Mapping[str, Any]):
    """Fields or scalars by whatever name the loss asks for; only those that data always have are listed.

    Attributes:
        read: names that were asked for.
    """

    def __init__(self, make: Callable[[str], Any], listed: tuple[str, ...] = ()) -> None:
        self._make, self._listed = make, listed
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return self._make(name)

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self._listed)

    def __len__(self) -> int:
        return len(self._listed)


@dataclass(frozen=True)
class LossCase:
    """One random evaluation of a loss.

    Fields and scalars are made when the loss asks for them, the same ones for the same name: `label` alternates 1 and
    0, names with `logprob` are negative, all others are normal.

    Attributes:
        needs: names of outputs.
        together: `group` makes pairs; otherwise every sequence is its own group.
        sequences: which of the seeded sequences, in which order.
        padding: further targets that nobody counts.
        noise: added to fields where the mask is false, and there only.
        empty: sequences (by position) without a target that counts.
    """

    needs: frozenset[str]
    together: Together
    seed: int = 0
    sequences: tuple[int, ...] = tuple(range(SEQUENCES))
    padding: int = 0
    noise: float = 0.0
    empty: frozenset[int] = frozenset()
    overrides: Mapping[str, Values] = field(default_factory=dict)

    def mask(self) -> Values:
        """(S, T) bool: a random part of each sequence, at least one target."""
        full = _seeded("mask", self.seed).random((SEQUENCES, TARGETS)) < 0.7
        full[:, 0] |= ~full.any(axis=1)
        full[sorted(self.empty)] = False
        return np.pad(full[list(self.sequences)], ((0, 0), (0, self.padding)))

    def output(self, need: str) -> Values:
        """What the loss reads under this name, zero where the mask is false."""
        if need in self.overrides:
            return self.overrides[need]
        name = need.split("@")[0]
        random = _seeded("output", need, self.seed)
        shape = {"scores": (SEQUENCES,), "logits": (SEQUENCES, TARGETS, VOCABULARY)}.get(name, (SEQUENCES, TARGETS))
        shape = (SEQUENCES, TARGETS, HIDDEN) if name.startswith("hidden") else shape
        values = random.normal(size=shape)
        if name == "logprobs":
            values = -np.abs(values) - 0.1
        elif name == "entropy":
            values = np.abs(values)
        values = values[list(self.sequences)]
        if name == "scores":
            return values
        values = np.pad(values, ((0, 0), (0, self.padding), *[(0, 0)] * (values.ndim - 2)))
        return np.where(self.mask().reshape(*self.mask().shape, *[1] * (values.ndim - 2)), values, 0.0)

    def field(self, name: str) -> Values:
        """(S, T) field: random where the input is, 0 where padded."""
        random = _seeded("field", name, self.seed)
        values = random.normal(size=(SEQUENCES, TARGETS))
        if "logprob" in name:
            values = -np.abs(values) - 0.1
        elif name == "weights":
            values = 0.5 + random.random((SEQUENCES, TARGETS))
        values = np.pad(values[list(self.sequences)], ((0, 0), (0, self.padding)))
        inside = np.pad(np.ones((len(self.sequences), TARGETS), dtype=bool), ((0, 0), (0, self.padding)))
        if name == "weights":
            values = np.where(self.mask(), values, 0.0)
        return values + self.noise * (inside & ~self.mask())

    def scalar(self, name: str) -> Values:
        """(S,) scalar."""
        values = np.abs(_seeded("scalar", name, self.seed).normal(size=SEQUENCES))
        if name == "label":
            values = np.array([1.0, 0.0] * (SEQUENCES // 2))
        return values[list(self.sequences)]

    def targets(self) -> Values:
        """(S, T) ids, 0 where the mask is false."""
        ids = _seeded("targets", self.seed).integers(1, VOCABULARY, size=(SEQUENCES, TARGETS))[list(self.sequences)]
        return np.where(self.mask(), np.pad(ids, ((0, 0), (0, self.padding))), 0)

    def group(self) -> Values:
        """(S,) 0-based index."""
        count = len(self.sequences)
        return np.arange(count) // 2 if self.together == "group" else np.arange(count)

    def outputs(self, convert: Convert = numpy_array) -> dict[str, Any]:
        """All outputs the loss needs, as arrays of a library."""
        return {need: convert(self.output(need)) for need in sorted(self.needs)}

    def data(self, convert: Convert = numpy_array) -> LossData:
        """What the loss sees in addition to the outputs."""
        return LossData(
            mask=convert(self.mask()),
            targets=convert(self.targets()),
            fields=OnDemand(lambda name: convert(self.field(name)), ("weights",)),
            scalars=OnDemand(lambda name: convert(self.scalar(name))),
            group=convert(self.group()),
        )
