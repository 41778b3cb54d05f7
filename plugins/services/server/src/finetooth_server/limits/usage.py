"""Tenants' usage of their limits, for themselves and for the server's operator."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from sqlalchemy import func, select

from finetooth_server.keeping.records import QUEUED, Records, calls, checkpoints, models, sessions
from finetooth_server.settings import Limits

FILE = "limits.json"


@dataclass(frozen=True)
class Usage:
    """A tenant's usage.

    Attributes:
        models: open ones.
        sessions: open ones.
        queued: waiting calls.
        checkpoint_bytes: of its checkpoints.
    """

    models: int = 0
    sessions: int = 0
    queued: int = 0
    checkpoint_bytes: int = 0


def usage(records: Records, tenant: str | None = None) -> dict[str, Usage]:
    """Usage by tenant, without unused ones; optionally of one tenant."""
    queries = {
        "models": (models, func.count(), models.c.closed.is_(False)),
        "sessions": (sessions, func.count(), sessions.c.closed.is_(False)),
        "queued": (calls, func.count(), calls.c.state == QUEUED),
        "checkpoint_bytes": (checkpoints, func.sum(checkpoints.c.size), checkpoints.c.size > 0),
    }
    taken: dict[str, dict[str, int]] = {} if tenant is None else {tenant: {}}
    with records.read() as connection:
        for name, (table, amount, those) in queries.items():
            chosen = select(table.c.tenant, amount.label("amount")).where(those).group_by(table.c.tenant)
            if tenant is not None:
                chosen = chosen.where(table.c.tenant == tenant)
            for row in connection.execute(chosen):
                taken.setdefault(row.tenant, {})[name] = int(row.amount)
    return {name: Usage(**amounts) for name, amounts in sorted(taken.items())}


def write_limits(folder: Path, limits: Limits) -> None:
    """Store the limits in a server's folder."""
    staging = folder / f".{FILE}"
    staging.write_text(json.dumps(asdict(limits)))
    staging.replace(folder / FILE)


def read_limits(folder: Path) -> Mapping[str, float]:
    """The limits of a folder's last server; the defaults without one."""
    file = folder / FILE
    limits: Mapping[str, float] = json.loads(file.read_text()) if file.exists() else asdict(Limits())
    return limits
