"""The reference's log-probabilities of the training data, computed once before training and saved.

The key is a hash of the data (tokens and masks, so also the renderer), the model's files, the precision, the recipe's
added tokens, and the quantizer. A later run with the same content reuses the numbers.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from finetooth_hooks import Datum, Engine, EngineError
from finetooth_hooks.context import Context
from numpy.typing import NDArray

FIELD = "logprobs@reference"
AT_ONCE = 256
"""Number of data in one call."""


class ReferenceLogprobs:
    """Log-probabilities of the counted targets.

    Args:
        values: of all data, end to end, float32.
        counts: number of counted targets of each datum.
    """

    def __init__(self, values: NDArray[np.float32], counts: NDArray[np.int64]) -> None:
        self._values, self._ends = values, np.cumsum(counts)

    def add(self, place: int, datum: Datum) -> Datum:
        """Datum number `place` with its log-probabilities as a field."""
        start = int(self._ends[place - 1]) if place else 0
        wide = np.zeros(len(datum), dtype=np.float32)
        wide[datum.mask] = self._values[start : int(self._ends[place])]
        return replace(datum, mask=datum.mask, fields={**datum.fields, FIELD: wide})


def reference_numbers(context: Context, engine: Engine, data: Sequence[Datum]) -> ReferenceLogprobs:
    """The reference's numbers: read from the cache, or computed now by the policy before its first step.

    Raises:
        EngineError: the numbers are missing and the policy has already trained, or they are not finite.
    """
    counts = np.array([int(datum.mask.sum()) for datum in data], dtype=np.int64)
    file = context.cache / "reference-logprobs" / f"{_key(context, engine, data)}.npy"
    values = _read(file, int(counts.sum()))
    if values is None:
        values = _make(engine, data)
        _write(file, values)
        context.note(f"the reference's log-probabilities of {len(data):,} answers were computed and saved")
    else:
        context.note(f"the reference's log-probabilities of {len(data):,} answers were read from the cache")
    return ReferenceLogprobs(values, counts)


def _make(engine: Engine, data: Sequence[Datum]) -> NDArray[np.float32]:
    role = "reference" if "reference" in engine.capabilities else "policy"
    if role == "policy" and engine.weights_version:
        raise EngineError(
            "the reference's log-probabilities are no longer saved, and the policy has changed since they were "
            "computed",
            action="start the run again, or set method.reference to frozen-copy",
        )
    parts = []
    for begin in range(0, len(data), AT_ONCE):
        some = [data[i] for i in range(begin, min(begin + AT_ONCE, len(data)))]
        for datum, logprobs in zip(some, engine.logprobs(some, role=role), strict=True):
            if not np.isfinite(logprobs).all():
                raise EngineError(
                    f"the reference's log-probabilities of {datum.id} are not finite",
                    action="look at this row, or set train.precision to fp32",
                )
            parts.append(logprobs[datum.mask].astype(np.float32))
    return np.concatenate(parts)


def _key(context: Context, engine: Engine, data: Sequence[Datum]) -> str:
    model = context.model
    about = f"1 {model.reference} {model.revision} {model.digest} {engine.info.precision}"
    if new := context.facts.new_tokens:  # each takes a share of every prediction, even if the data lack it
        about += f" {context.facts.vocab_size} {new}"
    digest = hashlib.sha256(about.encode())
    plan = context.plan
    if plan is not None:
        kinds, begun = ["quantizer"], list[str]()  # a quantised base gives other numbers
        if "reference" not in engine.capabilities:  # the initial policy, which may already be trained
            kinds.append("adapter")
            begun = [note for note in plan.notes if note.startswith("adapter.resume_from:")]  # with the SHA-256 of what
        stored = {kind: [plan.picks.get(kind), plan.options.get(kind)] for kind in kinds}
        digest.update(json.dumps([begun, stored], sort_keys=True, default=str).encode())
    for datum in data:
        for array in (datum.placeholder_tokens, datum.targets, datum.mask):
            digest.update(np.ascontiguousarray(array).tobytes())
        for place, medium in datum.media:  # different images have the same placeholders
            digest.update(f"{place} {medium.kind} ".encode() + hashlib.sha256(medium.data).digest())
        digest.update(b"|")
    return digest.hexdigest()


def _read(file: Path, count: int) -> NDArray[np.float32] | None:
    """The saved numbers; None if the file is missing or incomplete."""
    try:
        values: NDArray[np.float32] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return None
    return values if values.shape == (count,) and values.dtype == np.float32 else None


def _write(file: Path, values: NDArray[np.float32]) -> None:
    """Write to a temporary file and move it into place."""
    file.parent.mkdir(parents=True, exist_ok=True)
    staging = file.with_name(f".{file.stem}-{secrets.token_hex(4)}.npy")
    np.save(staging, values, allow_pickle=False)
    staging.replace(file)
