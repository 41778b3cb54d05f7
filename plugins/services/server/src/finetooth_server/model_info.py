"""A model as its client sees it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select

from finetooth_server.keeping.records import calls, models

LAST = select(func.max(calls.c.seq)).where(calls.c.queue == models.c.id).scalar_subquery().label("last")
"""Number of a model's last call in the log; old calls are removed from it."""


@dataclass(frozen=True)
class ModelInfo:
    """A model that a client trains.

    Attributes:
        base: name under which its base model is served.
        applied: number of the last call that was executed; -1 before the first.
        next_seq: number of the next call.
    """

    id: str
    session: str
    base: str
    recipe: Mapping[str, Any]
    about: Mapping[str, Any]
    created: float
    applied: int
    next_seq: int
    closed: bool


def model_info(row: Any) -> ModelInfo:
    """Of a row with `LAST`."""
    return ModelInfo(
        row.name or row.id,
        row.session,
        row.base,
        json.loads(row.recipe),
        json.loads(row.about),
        row.created,
        row.applied,
        max(-1 if row.last is None else row.last, row.applied) + 1,
        bool(row.closed),
    )
