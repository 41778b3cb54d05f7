"""Settings of a server."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetooth_server.encryption.master import MasterKeys

LINE = "FT_SERVED_RANK"
"""Variable with the file descriptor of a rank's line to its server; with it, `ft serve` is a rank."""

DATABASE = "service.db"
"""The default database in a server's folder."""


@dataclass(frozen=True)
class Limits:
    """Limits of one tenant or one request.

    Attributes:
        body: bytes of a request.
        values: numbers, texts and the like in a request's JSON, about: all other threads wait while they are parsed.
        coming: bytes of requests that are coming in, over all clients.
        tokens: input positions of one call, with prompts and their longest completions.
        samples: completions of one call.
        memory: bytes of one call without the model: keys and values, requested logits, its answer.
        queued: waiting calls of a tenant; more are refused until some finish.
        models: of a tenant at once.
        live: engines in memory, over all tenants; others are moved to disk until their next call.
        handle: seconds that a forward waits for its backward.
        wait: seconds that a request for a result is held, at most.
        results: seconds that a result is kept after its client had it.
        undelivered: seconds that a result is kept when its client does not fetch it.
        batch: sampling calls in one batch.
        held: bytes of adapters of one base in one batch; the least recently used one makes room. 0: each set of weights
            takes turns.
        turn: seconds for which calls may join a batch while others wait for other weights.
        waiting: waiting calls over all tenants; more are refused until some finish.
        streams: of a tenant at once.
        requests: of a tenant per second, while others are active; a tenant alone on the server is not limited.
        strangers: requests without a valid key per second from one address.
        connections: running requests of a tenant.
        device_memory: bytes of all running calls together, without their models.
        samplers: engines in memory that sample from saved weights.
        sampler_bytes: of their weights; a shared base does not count.
        sessions: of a tenant at once.
        checkpoint_bytes: of a tenant's checkpoints on disk.
        gap: seconds that calls wait for a missing number before them.
        silent: seconds after the last heartbeat until a session with heartbeats ends.
        left: the same if its tenant requests a model and has reached its limit.
        idle: seconds after the last call until a session without heartbeats ends.
        ranks: processes of one model.
        rank_silence: seconds without a sign of life after which such a process counts as lost, and its session ends.
        history: remembered ended sessions of a tenant; of more, the least recently used are removed.
    """

    body: int = 64 * 2**20
    values: int = 2**22
    coming: int = 4 * 64 * 2**20
    tokens: int = 2**20
    samples: int = 1024
    memory: int = 2 * 2**30
    queued: int = 4096
    models: int = 16
    live: int = 8
    handle: float = 600.0
    wait: float = 30.0
    batch: int = 64
    results: float = 86400.0
    undelivered: float = 7 * 86400.0
    held: int = 2**30
    turn: float = 1.0
    waiting: int = 16384
    streams: int = 64
    requests: float = 50.0
    strangers: float = 5.0
    connections: int = 1024
    silent: float = 3600.0
    gap: float = 3600.0
    samplers: int = 4
    sampler_bytes: int = 16 * 2**30
    sessions: int = 256
    checkpoint_bytes: int = 256 * 2**30
    device_memory: int = 4 * 2**30
    left: float = 60.0
    idle: float = 7 * 86400.0
    history: int = 1000
    ranks: int = 1
    rank_silence: float = 60.0


@dataclass(frozen=True)
class ServedAdapter:
    """An adapter for every tenant.

    Attributes:
        base: name of its base model.
        recipe: the base's, with the adapter's own section.
        folder: its artifact.
    """

    base: str
    recipe: Mapping[str, Any]
    folder: Path


@dataclass(frozen=True)
class Settings:
    """A server.

    Attributes:
        folder: for the database, checkpoints and snapshots.
        models: recipe by the name of a served base model; a client's adapter, optimizer and seed are added to it.
        database: SQLAlchemy's URL; empty: a SQLite file in `folder`.
        replay: most seconds of training to repeat after a crash; a snapshot follows each such time of computation.
        encryption: keys for checkpoints, snapshots and calls; None leaves them plain.
        audit_key: file with the key that signs the audit record's head; None: one in `folder`.
        scratch: for plain weights while they are written or read; None: a folder in `folder`.
        adapters: served in addition to the models, by name.
        keyless: requests without a key belong to the tenant `local`; only for a server that nobody else can reach.
        own_command: command that serves with this process's plugins, to start the ranks of a model.
    """

    folder: Path
    models: Mapping[str, Mapping[str, Any]]
    database: str = ""
    replay: float = 30.0
    encryption: MasterKeys | None = None
    audit_key: Path | None = None
    scratch: Path | None = None
    adapters: Mapping[str, ServedAdapter] = field(default_factory=dict)
    keyless: bool = False
    own_command: tuple[str, ...] = (sys.executable, "-m", "finetooth", "serve", "api")
    limits: Limits = field(default_factory=Limits)

    @property
    def database_url(self) -> str:
        """SQLAlchemy's URL."""
        return self.database or f"sqlite:///{self.folder / DATABASE}"
