"""What the checks of an engine work on: fresh engines, small data, and ways to see gradients through the primitives."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks.data.datum import Datum, TokenChunk
from finetooth_hooks.engine import Engine
from numpy.typing import NDArray

from finetooth_kit.checks import CheckSkipped, expect, fail

TOLERANCE = {"fp64": 1e-6, "fp32": 1e-4, "bf16": 5e-2, "fp16": 2e-2}
"""Relative, by precision. Even in fp64 log-probabilities come back as float32."""

_LENGTHS = (7, 4, 9, 3, 6, 5)


@dataclass(frozen=True)
class EngineCase:
    """An engine under test.

    Attributes:
        make: a fresh engine, with the same weights at each call.
        vocab_size: token ids below it may be used.
    """

    make: Callable[[], Engine]
    vocab_size: int
    folder: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))

    def engine(self, *needs: str) -> Engine:
        """A fresh engine.

        Raises:
            CheckSkipped: it does not claim a capability that the check is about.
        """
        engine = self.make()
        missing = [need for need in needs if need not in engine.capabilities]
        if missing:
            raise CheckSkipped(f"the engine does not claim {', '.join(missing)}")
        return engine

    def data(self, count: int = 6, seed: int = 0) -> list[Datum]:
        """Sequences of different lengths, adjacent ones in pairs, some targets without weight."""
        random = np.random.default_rng(seed)
        data = []
        for i in range(count):
            length = _LENGTHS[i % len(_LENGTHS)] + 1
            tokens = random.integers(1, self.vocab_size, size=length)
            weights = np.where(random.random(length) < 0.3, 0.0, 0.5 + random.random(length))
            weights[1] = 1.0
            data.append(
                Datum.from_tokens([*map(int, tokens)], [*map(float, weights)], group=f"{i // 2}", id=f"kit:{i}")
            )
        return data

    def prompts(self) -> list[list[int]]:
        """Prompts of different lengths."""
        random = np.random.default_rng(5)
        return [[int(t) for t in random.integers(1, self.vocab_size, size=n)] for n in (3, 7, 5)]

    def every_target(self, tokens: Sequence[int]) -> Datum:
        """A datum whose targets at each position are all ids of the vocabulary, (N, V)."""
        ids = np.asarray(tokens, dtype=np.int64)
        targets = np.broadcast_to(np.arange(self.vocab_size), (len(ids), self.vocab_size))
        return Datum((TokenChunk(ids),), targets.copy(), id="kit:every-target")


def masks(data: Sequence[Datum]) -> list[NDArray[np.bool_]]:
    """The masks of data."""
    return [np.asarray(datum.mask) for datum in data]


def weights(datum: Datum) -> NDArray[np.float64]:
    """The weights of a datum's targets, 0 where the mask is false."""
    return np.asarray(datum.fields["weights"], dtype=np.float64) * datum.mask


def masked(datum: Datum, mask: NDArray[np.bool_]) -> Datum:
    """The datum with another mask and no weights."""
    return replace(datum, mask=mask, fields={})


def close(engine: Engine, called: str, got: Any, wanted: Any, what: str, factor: float = 1.0) -> None:
    """Fail unless got is wanted, within the tolerance of the engine's precision."""
    tolerance = factor * TOLERANCE.get(engine.info.precision, 1e-4)
    a, b = np.asarray(got, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    if a.shape != b.shape:
        fail(called, f"shape {a.shape}", f"shape {b.shape}: {what}")
    if not np.allclose(a, b, rtol=tolerance, atol=tolerance):
        worst = np.unravel_index(int(np.argmax(np.abs(a - b))), a.shape) if a.shape else ()
        place = f" at {[int(i) for i in worst]}" if a.shape else ""
        fail(called, f"{a[worst]:.9g}{place}", f"{b[worst]:.9g} within {tolerance:g}: {what}")


def all_close(engine: Engine, called: str, got: Sequence[Any], wanted: Sequence[Any], what: str) -> None:
    """`close` for each of several arrays."""
    expect(len(got) == len(wanted), called, f"{len(got)} results", f"{len(wanted)}: {what}")
    for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
        close(engine, f"{called}, datum {i}", a, b, what)


@dataclass(frozen=True)
class Footprint:
    """What accumulated gradients do: their norm, and the log-probabilities after one step along them."""

    grad_norm: float
    after: tuple[NDArray[np.float32], ...]


def footprint(engine: Engine, data: Sequence[Datum]) -> Footprint:
    """Take a step and look."""
    stepped = engine.step()
    return Footprint(stepped.grad_norm, tuple(engine.logprobs(data)))


def same_footprint(engine: Engine, called: str, got: Footprint, wanted: Footprint, what: str) -> None:
    """Fail unless two footprints agree: then so did the gradients."""
    close(engine, f"{called}, step().grad_norm", got.grad_norm, wanted.grad_norm, what)
    all_close(engine, f"{called}, logprobs() after step()", got.after, wanted.after, what)
