"""Indexes for registries of 100,000 versions; events by model."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add them; the model of each event is in its detail."""
    op.add_column("events", sa.Column("model", sa.String(128)))
    events = sa.table("events", sa.column("model", sa.String), sa.column("detail", sa.JSON))
    op.execute(events.update().values(model=events.c.detail["model"].as_string()))
    op.create_index("events_of_model", "events", ["model", "sequence"])
    op.drop_index("ix_measurements_model", "measurements")
    op.create_index("measurements_of_version", "measurements", ["model", "number", "id"])
    op.create_index("versions_by_age", "versions", ["added", "model", "number"])
