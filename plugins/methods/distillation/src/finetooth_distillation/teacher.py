"""Adds the teacher's likeliest tokens at each position to data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from finetooth_hooks import Options
from finetooth_hooks.data.datum import Datum
from finetooth_hooks.engine import Engine, RoleModel
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

ROLE = "teacher"
NUMBERS_AT_ONCE = 2**26
"""Largest number of the teacher's logits in memory at once."""


class TeacherOptions(Options):
    """The model to learn from."""

    policy: str = Field(min_length=1)
    """A run, or a model's name, folder or hub id, with the same tokenizer; its weights may be quantised."""


def _as_mapping(value: Any) -> Any:
    return {"policy": value} if isinstance(value, str) else value


Teacher = Annotated[TeacherOptions, BeforeValidator(_as_mapping)]
"""The section, or only its `policy`."""


def held(teacher: TeacherOptions) -> Mapping[str, RoleModel | None]:
    """For `protocols.Method.roles`."""
    return {ROLE: RoleModel(teacher.policy)}


def with_teacher(
    engine: Engine, data: Sequence[Datum], k: int, *, temperature: float, vocabulary: int, role: str = ROLE,
) -> list[Datum]:  # fmt: skip
    """The data with targets (N, 1 + K), the row's own token and the teacher's K likeliest, and the teacher's
    log-probabilities of all of them, field `teacher_logprobs` (N, 1 + K), 0 where the mask is false.

    Args:
        temperature: of the teacher's distribution.
        vocabulary: number of the model's tokens; K is smaller.
        role: of the teacher.
    """
    taught: list[Datum] = []
    at_once = max(1, NUMBERS_AT_ONCE // (vocabulary * max(len(datum.targets) for datum in data)))
    for start in range(0, len(data), at_once):
        part = data[start : start + at_once]
        outputs = engine.forward(part, role=role, returns=("logits",), train=False).outputs
        taught += [_with(datum, of["logits"], k, temperature) for datum, of in zip(part, outputs, strict=True)]
    return taught


def _with(datum: Datum, logits: NDArray[Any], k: int, temperature: float) -> Datum:
    z = np.asarray(logits[datum.mask], dtype=np.float64) / temperature
    k = min(k, z.shape[-1] - 1)
    top = z.max(axis=-1, keepdims=True)
    logprobs = z - top - np.log(np.exp(z - top).sum(axis=-1, keepdims=True))
    likeliest = np.sort(np.argpartition(-z, k - 1, axis=-1)[:, :k], axis=-1)
    own = np.asarray(datum.targets)[datum.mask][:, None]
    ids = np.concatenate([own, likeliest], axis=1)
    targets = np.repeat(np.asarray(datum.targets)[:, None], 1 + k, axis=1)
    targets[datum.mask] = ids
    teacher = np.zeros(targets.shape)
    teacher[datum.mask] = np.take_along_axis(logprobs, ids, axis=1)
    return replace(datum, targets=targets, fields={**datum.fields, "teacher_logprobs": teacher})
