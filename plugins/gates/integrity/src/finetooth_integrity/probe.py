"""Gate `probe`: a checkpoint loaded back scores as the engine did when it was saved."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from finetooth_hooks import Candidate, Context, Datum, Engine, FinetoothError, Options, TokenChunk
from numpy.typing import NDArray
from pydantic import Field

from finetooth_integrity.finite import ENGINE


class ProbeOptions(Options):
    """Options of the gate `probe`."""

    sequences: int = Field(4, ge=1)
    """Number of sequences to score."""
    tokens: int = Field(32, ge=1)
    """Tokens of each sequence, or as many as the model and a micro-batch allow if that is fewer."""


class ProbeGate:
    """`checkpoints.Gate`: per-target log-probabilities of a batch of random tokens are equal, bit for bit, before and
    after `Engine.load`.

    Args:
        tokens: (sequences, tokens + 1) ids; the last of a row is only a target.
        longest: how many positions a sequence may have; asked when the engine is there, since the plan may still be
            under way when the gate is built.
    """

    def __init__(self, tokens: NDArray[np.int64], longest: Callable[[], int]) -> None:
        self._tokens = tokens
        self._longest = longest

    def check(self, candidate: Candidate) -> str:
        """Says how many log-probabilities differ. The engine leaves as it came, whatever the answer.

        Raises:
            FinetoothError: the engine cannot take its own state back; it cannot train on.
        """
        engine = candidate.engine
        if engine is None:
            return "the probe needs the engine, and there is none"
        data = self.batch(engine.info.max_length)
        before = engine.logprobs(data)
        restore = _way_back(engine)
        try:
            engine.load(candidate.folder / ENGINE)
            after = engine.logprobs(data)
        except (FinetoothError, OSError, ValueError, KeyError) as error:
            return f"it does not load back: {' '.join(str(error).split()) or type(error).__name__}"
        finally:
            restore()  # also where nothing differs: training never depends on what was read
        differ = sum(_differing(ours, theirs) for ours, theirs in zip(before, after, strict=True))
        if not differ:
            return ""
        total = sum(scores.size for scores in before)
        return f"loaded back, {differ} of {total} log-probabilities of the probe differ from those in memory"

    def batch(self, bound: int) -> list[Datum]:
        """The sequences.

        Args:
            bound: positions that the engine takes at most; 0 is any number.
        """
        length = min(filter(None, (self._tokens.shape[1] - 1, self._longest(), bound)))
        rows = self._tokens[:, : length + 1]
        return [Datum((TokenChunk(row[:-1]),), row[1:], id=f"probe:{number}") for number, row in enumerate(rows)]


def _way_back(engine: Engine) -> Callable[[], None]:
    """Remembers the state of the engine; call what it returns to have it back."""
    if "snapshots" in engine.capabilities:
        snapshot = engine.snapshot()
        return lambda: engine.rollback(snapshot)
    scratch = tempfile.TemporaryDirectory(prefix="finetooth-probe-")
    engine.save(Path(scratch.name) / ENGINE)

    def load() -> None:
        with scratch as folder:
            engine.load(Path(folder) / ENGINE)

    return load


def _differing(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> int:
    """How many elements differ in any bit; all of them where shapes do."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return int(ours.size)
    bits = np.dtype(f"u{ours.itemsize}")
    return int(np.count_nonzero(np.ascontiguousarray(ours).view(bits) != np.ascontiguousarray(theirs).view(bits)))


def build(options: ProbeOptions, context: Context) -> ProbeGate:
    """Builder of the gate `probe`; its tokens are drawn from the vocabulary with the run's seed."""
    facts = context.facts
    drawn = context.generator("gate", "probe").integers(
        0, facts.vocab_size, size=(options.sequences, options.tokens + 1)
    )

    def longest() -> int:
        train = context.train if context.plan is None else context.plan.train
        return min(filter(None, (options.tokens, facts.max_positions, train.max_length, train.micro_batch_tokens)))

    return ProbeGate(drawn, longest)
