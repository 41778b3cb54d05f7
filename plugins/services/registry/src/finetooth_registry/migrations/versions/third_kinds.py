"""An index of the log by kind."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add it."""
    op.create_index("events_of_kind", "events", ["kind", "sequence"])
