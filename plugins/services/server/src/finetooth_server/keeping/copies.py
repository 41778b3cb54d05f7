"""Copies of checkpoints: each belongs to a new model that cannot be trained."""

from __future__ import annotations

import json

from sqlalchemy import insert, select

from finetooth_server.faults import Conflict
from finetooth_server.keeping.checkpoints import Checkpoint, Checkpoints, check_ttl
from finetooth_server.keeping.model_ids import check_id, same_folder
from finetooth_server.keeping.records import Records, models, now
from finetooth_server.keys import Caller
from finetooth_server.sections import described


def copy_checkpoint(
    records: Records,
    checkpoints: Checkpoints,
    caller: Caller,
    source: Checkpoint,
    *,
    session: str,
    model: str,
    ttl: float | None,
) -> Checkpoint:
    """A copy of a readable checkpoint. The same model again gives the same copy.

    Args:
        session: of the caller's.
        model: id of the new model.
        ttl: seconds until the copy may be removed; None is never.

    Raises:
        Conflict: another model has the id.
        UserError: the id is invalid, or the time is too short or too long.
    """
    check_id(model)
    check_ttl(ttl)
    row = {
        "id": model,
        "tenant": caller.tenant,
        "session": session,
        "base": source.base,
        "recipe": json.dumps(source.recipe),
        "about": described({"copy of": source.id}),
        "created": now(),
        "applied": 0,  # as if already made: calls on it find it closed, and none waits for its creation
        "closed": True,
    }
    with records.write() as connection:
        known = connection.execute(select(models).where(same_folder(model))).first()
        if known is not None and (known.tenant != caller.tenant or known.about != row["about"]):
            raise Conflict(f"model id {model!r} is taken", action="choose another one")
        if known is None:
            connection.execute(insert(models).values(row))
    return checkpoints.copy(source, tenant=caller.tenant, model=model, ttl=ttl)
