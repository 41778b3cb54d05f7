"""The tables of a registry after the newest migration."""

from __future__ import annotations

from sqlalchemy import JSON, Column, Float, Index, Integer, MetaData, String, Table, Text

METADATA = MetaData()

KEYS = Table(
    "keys",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("public", Text, nullable=False),
    Column("added", String(32), nullable=False),
    Column("revoked", String(32)),
)
VERSIONS = Table(
    "versions",
    METADATA,
    Column("model", String(128), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("record", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("added", String(32), nullable=False),
    Column("artifact", String(64)),
    Index("versions_by_artifact", "artifact"),
    Index("versions_by_age", "added", "model", "number"),
)
CHANNELS = Table(
    "channels",
    METADATA,
    Column("model", String(128), primary_key=True),
    Column("channel", String(64), primary_key=True),
    Column("number", Integer, nullable=False),
)
MEASUREMENTS = Table(
    "measurements",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("model", String(128), nullable=False),
    Column("number", Integer, nullable=False),
    Column("metric", String(256), nullable=False),
    Column("value", Float),
    Column("answers", String(64)),
    Column("at", String(32), nullable=False),
    Index("measurements_of_version", "model", "number", "id"),
)
EVENTS = Table(
    "events",
    METADATA,
    Column("sequence", Integer, primary_key=True),
    Column("at", String(32), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("detail", JSON, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("model", String(128)),
    Index("events_of_model", "model", "sequence"),
    Index("events_of_kind", "kind", "sequence"),
)
