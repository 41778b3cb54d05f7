"""What a server is started with."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetooth_server.encryption.master import MasterKeys

LINE = "FT_SERVED_RANK"
"""Variable with the descriptor of a rank's line to its server; with it, `ft serve` is a rank."""

DATABASE = "service.db"
"""In a server's folder, where no other database is named."""


@dataclass(frozen=True)
class Limits:
    """What one tenant, or one request, may take.

    Attributes:
        body: bytes of a request.
        values: numbers, texts and the like in a request's JSON, about: all other threads wait while they are read.
        coming: bytes of requests that are coming in, over all clients.
        tokens: input positions of one call, prompts and what they may grow to included.
        samples: completions that one call may ask for.
        memory: bytes that one call may take without the model: keys and values, logits that it asks for, its answer.
        queued: calls of a tenant that wait; more are refused until some are done.
        models: of a tenant at once.
        live: engines held in memory, over all tenants; others are put to disk until their next call.
        handle: seconds that a forward waits for its backward.
        wait: seconds that a request for a result is held, at most.
        results: seconds that a result is kept after its client had it.
        undelivered: seconds that a result is kept when its client does not fetch it.
        batch: sampling calls that are written together.
        held: bytes of adapters of one base that are sampled in one batch; the one unused for
            longest makes room. 0: each set of weights has its turns.
        turn: seconds for which calls may join others that read the same weights, while some wait for other weights.
        waiting: calls that wait, over all tenants; more are refused until some are done.
        streams: of a tenant at once.
        requests: of a tenant that begin in a second, while others are at work; who has the server alone is not held up.
        strangers: requests without a valid key that are looked at in a second, from one address.
        connections: requests of a tenant that may be under way at once.
        device_memory: bytes that all running calls may take together, without their models.
        samplers: engines held in memory that sample from saved weights.
        sampler_bytes: of their weights; a base that they share does not count.
        sessions: of a tenant at once.
        checkpoint_bytes: that a tenant's checkpoints may take on disk.
        gap: seconds that calls wait for one whose number is missing before them.
        silent: seconds after the last heartbeat until a session ends whose client sent some.
        left: the same where its tenant asks for a model and has as many as it may.
        idle: seconds after the last call until a session ends whose client sent no heartbeat.
        ranks: processes that one model may be spread over.
        rank_silence: seconds without a sign of life after which such a process counts as lost, and its session ends.
        history: ended sessions of a tenant that are remembered; of more, those used last longest ago are forgotten.
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
    """An adapter that everybody may sample from.

    Attributes:
        base: name of the model that it was trained over.
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
        database: SQLAlchemy's URL; empty is a SQLite file in `folder`.
        replay: seconds of training that may have to be done again after a crash; a snapshot is taken whenever so much
            was computed since the last one.
        encryption: what checkpoints, snapshots and calls are encrypted with; None leaves them plain.
        audit_key: file with the key that signs the audit record's head; None is one in `folder`.
        scratch: where weights lie plain while they are written or read; None is a folder in `folder`.
        adapters: by the name under which they are served, in addition to the models.
        keyless: requests without a key are the tenant `local`'s; only for a server that nobody else can reach.
        own_command: that serves, with the plugins of this process: what starts the ranks of a model.
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
