"""Keys and values of prompts that were read, for later prompts with the same beginning: the next turn of a
conversation, or another question behind the same system message.

They are valid for as long as the weights stay. An engine drops them when it is asked for anything but sampling, so
they never depend on what a resumed run would not repeat. Keys of completions are not kept: they were computed a token
at a time, and a prompt that is read in one pass has other roundings.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from finetooth_hooks.compute.held import HeldAdapter
from numpy.typing import NDArray

LEAST = 32
"""Tokens of a beginning that are worth not reading again."""


@dataclass(frozen=True, eq=False)
class ReadPrompts:
    """Prompts that were read together.

    Attributes:
        prompts: token ids of each.
        adapters: the adapter that read each; None for the engine's own weights.
        owners: of each; see `RunningBatch`.
        cells: for each prompt, the rows of its tokens in `layers`.
        layers: keys and values of N tokens as arrays of the engine, whose first side is N.
    """

    prompts: Sequence[NDArray[np.int64]]
    adapters: Sequence[weakref.ref[HeldAdapter] | None]
    owners: Sequence[str]
    cells: Sequence[NDArray[np.int64]]
    layers: Sequence[Any]

    @classmethod
    def of(
        cls, asked: Sequence[tuple[Sequence[int], HeldAdapter | None, str]], cells: Sequence[NDArray[np.int64]],
        layers: Sequence[Any],
    ) -> ReadPrompts:  # fmt: skip
        """Prompts with their adapters, which may be dropped elsewhere, and owners."""
        prompts, adapters, owners = zip(*asked, strict=True)
        held = [None if adapter is None else weakref.ref(adapter) for adapter in adapters]
        return cls([np.array(prompt, dtype=np.int64) for prompt in prompts], held, owners, cells, layers)

    @property
    def positions(self) -> int:
        """N."""
        return int(self.layers[0].shape[0])


@dataclass(frozen=True)
class Beginning:
    """The first tokens of a prompt, read before.

    Attributes:
        read: has their keys and values.
        rows: of these tokens in its layers.
    """

    read: ReadPrompts
    rows: NDArray[np.int64]


class KeptPrompts:
    """Reads, the most recently used last."""

    def __init__(self) -> None:
        self._reads: list[ReadPrompts] = []

    @property
    def positions(self) -> int:
        """Positions whose keys and values are kept."""
        return sum(read.positions for read in self._reads)

    def find(
        self, prompt: Sequence[int], adapter: HeldAdapter | None, owner: str = "", call: frozenset[bytes] | None = None
    ) -> Beginning | None:
        """The longest beginning of a prompt that was read with the same adapter for the same owner; without its last
        token, whose state is needed. None if it is shorter than `LEAST`.

        Args:
            call: if given, only a whole prompt is such a beginning, and none of these. Then the same call, made again,
                reads as it did, while what it continued is kept.
        """
        tokens, found, most = np.asarray(prompt, dtype=np.int64), None, LEAST - 1
        for read in self._reads:
            for other, held, of, cells in zip(read.prompts, read.adapters, read.owners, read.cells, strict=True):
                dropped = held is not None and held() is None
                if dropped or of != owner or adapter is not (None if held is None else held()):
                    continue
                common = min(_common(tokens, other), len(tokens) - 1)
                if common <= most or (call is not None and common < len(other)):
                    continue
                if call is None or other.tobytes() not in call:
                    most, found = common, Beginning(read, cells[:common])
        if found is not None:
            self._reads.remove(found.read)
            self._reads.append(found.read)
        return found

    def add(self, read: ReadPrompts) -> None:
        """Keep a read."""
        self._reads.append(read)

    def fit(self, positions: int) -> None:
        """Drop reads of dropped adapters, then the least recently used ones until so many positions are enough."""
        self._reads = [read for read in self._reads if any(held is None or held() for held in read.adapters)]
        while self._reads and self.positions > positions:
            del self._reads[0]

    def forget(self) -> None:
        """Drop all."""
        self._reads.clear()

    @contextmanager
    def apart(self, work: AbstractContextManager[None]) -> Iterator[None]:
        """Keep nothing from before the `with` block in it, and nothing of it behind it."""
        self.forget()
        try:
            with work:
                yield
        finally:
            self.forget()


@dataclass(frozen=True)
class Keeping:
    """How a batch continues and keeps prompts.

    Attributes:
        kept: prompts of earlier batches.
        asked: each prompt of the batch, its adapter and owner; see `ReadPrompts`.
        free: positions that may be kept.
        call: see `KeptPrompts.find`.
    """

    kept: KeptPrompts
    asked: Sequence[tuple[Sequence[int], HeldAdapter | None, str]]
    free: int
    call: frozenset[bytes] | None = None

    def begun(self) -> list[Beginning | None]:
        """What was read of each prompt before."""
        return [self.kept.find(*of, self.call) for of in self.asked]

    def makes_room(self, positions: int, begun: Sequence[Beginning | None]) -> bool:
        """Whether this batch, of so many positions, may be kept together with the reads that it continues. If so, other
        reads leave until all fit."""
        used = sum(read.positions for read in {of.read for of in begun if of is not None})
        worth = max(len(prompt) for prompt, _, _ in self.asked) >= LEAST
        if fits := worth and used + positions <= self.free:
            self.kept.fit(self.free - positions)
        return fits

    def keep(self, cells: Sequence[NDArray[np.int64]], layers: Sequence[Any]) -> None:
        """Keep what the batch has read; see `ReadPrompts`."""
        self.kept.add(ReadPrompts.of(self.asked, cells, layers))


def _common(first: NDArray[np.int64], second: NDArray[np.int64]) -> int:
    """How many tokens both begin with."""
    shorter = min(len(first), len(second))
    differs = np.flatnonzero(first[:shorter] != second[:shorter])
    return int(differs[0]) if differs.size else shorter
