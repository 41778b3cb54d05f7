"""Queries of the log for calls to execute."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, Select, select

from finetooth_server.keeping.records import QUEUED, calls, keys, models


def executable() -> Select[Any]:
    """Calls, each with the moment at which its key was revoked."""
    return select(calls, keys.c.revoked.label("key_revoked")).outerjoin(keys, keys.c.id == calls.c.key)


def due_in(chosen: Select[Any], queue: str) -> Select[Any]:
    """The next call of a model's queue."""
    turn = (calls.c.seq == models.c.applied + 1) | models.c.closed
    waits = (calls.c.queue == queue) & (calls.c.state == QUEUED)
    return chosen.join(models, models.c.id == calls.c.queue).where(waits, turn).order_by(calls.c.seq).limit(1)


def waiting_besides(besides: Collection[str]) -> list[ColumnElement[bool]]:
    """The condition for waiting sampling calls, without these ids."""
    waiting = [calls.c.state == QUEUED, calls.c.batch.is_not(None)]
    return [*waiting, calls.c.id.not_in(besides)] if besides else waiting
