"""What a model may be called. Its id names the folder of its snapshots too, on systems of any kind."""

from __future__ import annotations

import re

from finetooth_hooks import UserError
from sqlalchemy import ColumnElement, func

from finetooth_server.records import models

PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._:-]*[A-Za-z0-9_:-])?$"
"""No way out of the server's folder, not hidden, and without a dot at the end, which Windows does not keep."""
LONGEST = 128


def check_id(id_: str) -> None:
    """
    Raises:
        UserError: a model cannot be called so.
    """
    if len(id_) > LONGEST or not re.fullmatch(PATTERN, id_):
        raise UserError(
            f"model id {id_!r}",
            action=f"use up to {LONGEST} letters, digits, '_', '-' and ':', and '.' between them",
        )


def folder_name(id_: str) -> str:
    """A model's id as the name of a folder: Windows takes no colon."""
    return id_.replace(":", "-")


def same_folder(id_: str) -> ColumnElement[bool]:
    """Models whose folder is this one's, also where a system takes large and small letters for the same."""
    return func.lower(func.replace(models.c.id, ":", "-")) == folder_name(id_).lower()
