"""A model for its client."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, func, select

from finetooth_server.keeping.records import calls, models


@dataclass(frozen=True)
class ModelInfo:
    """A model that a client trains or trained, or that holds a copy.

    Attributes:
        base: served name of its base model.
        used: seconds since 1970 of its latest call in the log, or of its creation.
        applied: number of the last executed call; -1 before the first.
        next_seq: number of the next call.
    """

    id: str
    session: str
    base: str
    recipe: Mapping[str, Any]
    about: Mapping[str, Any]
    created: float
    used: float
    applied: int
    next_seq: int
    closed: bool


def select_models() -> Select[Any]:
    """Rows for `model_info`: models, each with the number and the time of its last call in the log."""
    mine = calls.c.queue == models.c.id
    seq, came = (
        select(func.max(column)).where(mine).scalar_subquery().label(name)
        for column, name in ((calls.c.seq, "last_seq"), (calls.c.created, "last_call"))
    )
    return select(models, seq, came)


def model_info(row: Any) -> ModelInfo:
    """The model of a row of `select_models`."""
    last = -1 if row.last_seq is None else row.last_seq  # old calls are removed from the log
    return ModelInfo(
        id=row.name or row.id,
        session=row.session,
        base=row.base,
        recipe=json.loads(row.recipe),
        about=json.loads(row.about),
        created=row.created,
        used=max(row.created, row.last_call or 0.0),
        applied=row.applied,
        next_seq=max(last, row.applied) + 1,
        closed=bool(row.closed),
    )
