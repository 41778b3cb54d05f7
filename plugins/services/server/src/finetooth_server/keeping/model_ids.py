"""Checks ids of models. An id also names the folder of the model's snapshots, on any system."""

from __future__ import annotations

import re
from typing import Any

from finetooth_hooks import UserError
from sqlalchemy import ColumnElement, Connection, Row, Table, func, select

from finetooth_server.keeping.records import models

PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._:-]*[A-Za-z0-9_:-])?$"
"""No path out of the server's folder, not hidden, and without a final dot, which Windows drops."""
LONGEST = 128

SAMPLERS = "sampler:"
"""Prefix of a sampler's queue, before its id."""


def check_id(id_: str) -> None:
    """Check that a model can have this id.

    Raises:
        UserError: it cannot.
    """
    if id_.lower().startswith(SAMPLERS):
        raise UserError(f"model id {id_!r}", action=f"begin it with something else than {SAMPLERS}")
    if len(id_) > LONGEST or not re.fullmatch(PATTERN, id_):
        raise UserError(
            f"model id {id_!r}",
            action=f"use up to {LONGEST} letters, digits, '_', '-' and ':', and '.' between them",
        )


def folder_name(id_: str) -> str:
    """A model's id as the name of a folder: Windows takes no colon."""
    return id_.replace(":", "-")


def same_folder(id_: str) -> ColumnElement[bool]:
    """Models with this one's folder, also on systems that ignore case."""
    return func.lower(func.replace(models.c.id, ":", "-")) == folder_name(id_).lower()


def of_tenant(connection: Connection, table: Table, tenant: str, name: str) -> Row[Any] | None:
    """A tenant's model or sampler, by the id that its client knows: ids are per tenant."""
    mine = (table.c.tenant == tenant) & (func.coalesce(table.c.name, table.c.id) == name)
    return connection.execute(select(table).where(mine)).first()
