"""An index of each version's artifact, to find the version of weights without reading every record."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add it; the record of each version names it."""
    op.add_column("versions", sa.Column("artifact", sa.String(64)))
    names = ("model", "number", "record", "artifact")
    versions = sa.table("versions", *(sa.column(name) for name in names))
    artifact_of, connection = context.config.attributes["artifact_of"], op.get_bind()
    known = connection.execute(sa.select(versions.c.model, versions.c.number, versions.c.record)).all()
    if known:
        mine = (versions.c.model == sa.bindparam("named")) & (versions.c.number == sa.bindparam("numbered"))
        values = [{"named": model, "numbered": number, "made": artifact_of(record)} for model, number, record in known]
        connection.execute(versions.update().where(mine).values(artifact=sa.bindparam("made")), values)
    op.create_index("versions_by_artifact", "versions", ["artifact"])
