"""Folders written by `save`, by name and by model. Clients give names, never paths."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from finetooth_hooks import Engine, UserError
from sqlalchemy import ColumnElement, Row, Select, delete, func, insert, select, update

from finetooth_server.encryption.vault import Vault
from finetooth_server.faults import Unknown
from finetooth_server.keeping.records import Records, checkpoints, models, now, samplers, sessions
from finetooth_server.keys import Caller
from finetooth_server.live import state_copied

Kind = Literal["state", "weights", "external"]
"""`state`: training state and weights; `weights`: for samplers; `external`: the same files, for other programs."""

STATE, WEIGHTS, EXTERNAL = "state", "weights", "external"
RETIRED = "retired"
"""Kind of an overwritten checkpoint, kept while a sampler uses it."""

SHORTEST, LONGEST = 3600, 315_360_000
"""Allowed time to live of a checkpoint, in seconds: an hour to ten years."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint.

    Attributes:
        model: id of the model that wrote it.
        base: name of its base model.
        recipe: of the model.
        expires: seconds since 1970; None: never.
        size: bytes.
        public: every tenant of the server may read it.
        metadata: its client's notes.
    """

    id: str
    tenant: str
    model: str
    kind: Kind
    name: str
    base: str
    recipe: Mapping[str, Any]
    created: float
    expires: float | None
    size: int
    public: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints of a server.

    Args:
        vault: of the server's folder, with a folder per checkpoint, named by its id.
        most_bytes: of a tenant's checkpoints.
    """

    def __init__(self, records: Records, vault: Vault, *, most_bytes: int = 2**62) -> None:
        self._most_bytes = most_bytes
        self._records, self._vault, self._folder = records, vault, vault.root / "checkpoints"
        self._folder.mkdir(parents=True, exist_ok=True)

    def save(
        self,
        engine: Engine,
        *,
        tenant: str,
        model: str,
        model_name: str = "",
        base: str,
        recipe: Mapping[str, Any],
        kind: Kind,
        name: str,
        call: str = "",
        overwrite: bool = False,
        ttl: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        copied: Callable[[], None] = lambda: None,
    ) -> Checkpoint:
        """Write a model's checkpoint, whole or not at all, and synced to the disk.

        Args:
            model_name: the client's id of the model, if it differs from its id.
            call: id of the save's call. A checkpoint that this call wrote before a crash is not written again.
            ttl: seconds until it may be removed; None: never.
            metadata: its client's notes.
            copied: called when the engine is free again. Only one save of a tenant at a time is written in the
                background.

        Raises:
            UserError: the name is invalid or taken, or the tenant has no room left.
        """
        if not _NAME.fullmatch(name):
            raise UserError(f"checkpoint name {name!r}", action="use letters, digits, '.', '_' and '-', 128 at most")
        same = (checkpoints.c.model == model) & (checkpoints.c.kind == kind) & (checkpoints.c.name == name)
        with self._records.read() as connection:
            old = connection.execute(select(checkpoints).where(same)).first()
        if old is not None and call and json.loads(old.about).get("call") == call:
            return _checkpoint_of(old._asdict())
        if old is not None and not overwrite and not (old.expires and old.expires < now()):
            raise UserError(f"{model} has a checkpoint {name!r}", action="choose another name, or allow overwriting")
        id_ = secrets.token_hex(16)
        self._check_room(0, self._room(tenant, old))
        with self._vault.writing(self._folder / id_, flush=True) as folder:
            write = state_copied(engine, folder / STATE) if kind == STATE else None
            engine.export(folder / WEIGHTS)  # into the page cache, as its copy
            copied()
            if write is not None:
                write()
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            self._check_room(size, self._room(tenant, old))  # others may have come meanwhile
        row = {
            "id": id_,
            "tenant": tenant,
            "model": model,
            "kind": kind,
            "name": name,
            "base": base,
            "recipe": json.dumps(recipe),
            "about": json.dumps({"call": call, "model": model_name, "metadata": dict(metadata or {})}),
            "created": now(),
            "expires": None if ttl is None else now() + ttl,
            "size": size,
        }
        with self._records.write() as connection:
            in_use = old is not None and self._sampled(old.id)
            if old is not None and in_use:  # a sampler of it keeps the old one
                connection.execute(update(checkpoints).where(same).values(kind=RETIRED, name=old.id, expires=None))
            connection.execute(delete(checkpoints).where(same))
            connection.execute(insert(checkpoints).values(row))
        if old is not None and not in_use:
            self._vault.remove(self._folder / old.id)
        return _checkpoint_of(row)

    def _room(self, tenant: str, old: Row[Any] | None = None) -> int:
        """Bytes that a tenant may write, including those of a replaced checkpoint without samplers."""
        replaced = "" if old is None or self._sampled(old.id) else old.id
        return self._most_bytes - self.size(tenant, besides=replaced)

    def _check_room(self, size: int, room: int) -> None:
        if room <= 0 or size > room:
            raise UserError(
                f"checkpoints: they take {(self._most_bytes - room) / 1e6:,.1f} MB, this one "
                f"{size / 1e6:,.1f} MB, and {self._most_bytes / 1e6:,.1f} MB are allowed",
                action="delete some, or let them expire",
            )

    def size(self, tenant: str, *, besides: str = "") -> int:
        """Bytes of a tenant's checkpoints, optionally without one."""
        with self._records.read() as connection:
            mine = (checkpoints.c.tenant == tenant) & (checkpoints.c.id != besides)
            return int(connection.scalar(select(func.coalesce(func.sum(checkpoints.c.size), 0)).where(mine)) or 0)

    def _sampled(self, id_: str) -> bool:
        """Whether an open session samples from it."""
        with self._records.read() as connection:
            return connection.execute(_samplers_of(id_)).first() is not None

    def folder(self, checkpoint: Checkpoint, part: str) -> Path:
        """The path of its `state` or its `weights` in the vault.

        Raises:
            UserError: it has none.
        """
        place = self._folder / checkpoint.id / part
        if not place.is_dir():
            raise UserError(
                f"checkpoint {checkpoint.name!r} holds {checkpoint.kind} only", action="load one that save wrote"
            )
        return place

    @contextmanager
    def reading(self, checkpoint: Checkpoint, part: str, *, links: bool = False) -> Iterator[Path]:
        """A part of a checkpoint, for an engine. Errors name the checkpoint, never the path, which clients must not
        learn.

        Args:
            links: see `Vault.reading`.

        Raises:
            UserError: it has none, it cannot be decrypted, it holds a link, or its reader refuses it.
        """
        with self._vault.reading(self.folder(checkpoint, part), links=links) as folder:
            try:
                yield folder
            except UserError as error:
                if str(folder) not in error.problem:
                    raise
                problem = error.problem.replace(str(folder), f"checkpoint {checkpoint.name!r}")
                raise UserError(problem, action=error.action) from error

    def get(self, tenant: str, id_: str) -> Checkpoint:
        """A tenant's checkpoint.

        Raises:
            Unknown: there is none, or it is another tenant's, or it has expired.
        """
        return self._theirs(tenant, self._row(id_), id_)

    def readable(self, tenant: str, id_: str) -> Checkpoint:
        """A checkpoint that a tenant may read: its own, or one that is public.

        Raises:
            Unknown: it does not exist or has expired.
        """
        return self._theirs(tenant, self._row(id_), id_, public=True)

    def by_name(self, tenant: str, model: str, kind: str, name: str, *, public: bool = False) -> Checkpoint:
        """A tenant's checkpoint by model, kind and name.

        Args:
            public: include public ones of other tenants.

        Raises:
            Unknown: there is none.
        """
        with self._records.read() as connection:
            row = connection.execute(
                select(checkpoints).where(_of(tenant, model), checkpoints.c.kind == kind, checkpoints.c.name == name)
            ).first()
            if row is None and public:  # ids are per tenant: the first tenant with this one is meant
                same = (checkpoints.c.model == model) & (checkpoints.c.kind == kind) & (checkpoints.c.name == name)
                row = connection.execute(select(checkpoints).where(same, checkpoints.c.public.is_(True))).first()
        return self._theirs(tenant, row, name, public=public)

    def all(self, tenant: str, model: str | None = None) -> list[Checkpoint]:
        """A tenant's checkpoints, oldest first; of one model if asked."""
        mine = (checkpoints.c.tenant == tenant) & (checkpoints.c.kind != RETIRED)
        chosen = select(checkpoints).where(mine).order_by(checkpoints.c.created)
        if model is not None:
            chosen = chosen.where(_of(tenant, model))
        with self._records.read() as connection:
            rows = connection.execute(chosen).all()
        return [_checkpoint_of(row._asdict()) for row in rows if not (row.expires and row.expires < now())]

    def publish(self, tenant: str, id_: str, *, public: bool) -> None:
        """Make a checkpoint readable for every tenant, or only for its own.

        Raises:
            Unknown: the tenant has no such.
        """
        self._change(tenant, id_, public=public)

    def set_ttl(self, tenant: str, id_: str, seconds: float | None) -> None:
        """Set the seconds until a checkpoint expires; None keeps it until it is deleted.

        Raises:
            Unknown: the tenant has no such checkpoint.
            UserError: the time is too short or too long.
        """
        check_ttl(seconds)
        self._change(tenant, id_, expires=None if seconds is None else now() + seconds)

    def copy(self, source: Checkpoint, *, tenant: str, model: str, ttl: float | None = None) -> Checkpoint:
        """A copy of a checkpoint for a tenant, not public and with its own time to live. The same model again gives the
        same copy.

        Raises:
            UserError: the time is too short or too long.
        """
        check_ttl(ttl)
        same = (checkpoints.c.model == model) & (checkpoints.c.kind == source.kind)
        with self._records.read() as connection:
            known = connection.execute(select(checkpoints).where(same & (checkpoints.c.name == source.name))).first()
        if known is not None:
            return self._theirs(tenant, known, source.name)
        self._check_room(source.size, self._room(tenant))
        id_ = secrets.token_hex(16)
        with (
            self._vault.reading(self._folder / source.id) as old,
            self._vault.writing(self._folder / id_) as new,
        ):
            shutil.copytree(old, new, dirs_exist_ok=True)
        row = {
            "id": id_,
            "tenant": tenant,
            "model": model,
            "kind": source.kind,
            "name": source.name,
            "base": source.base,
            "recipe": json.dumps(source.recipe),
            "about": json.dumps({"metadata": dict(source.metadata)}),
            "created": now(),
            "expires": None if ttl is None else now() + ttl,
            "size": source.size,
        }
        with self._records.write() as connection:
            connection.execute(insert(checkpoints).values(row))
        return _checkpoint_of({**row, "public": None})

    def delete(self, caller: Caller, id_: str) -> None:
        """Remove a checkpoint."""
        self.get(caller.tenant, id_)
        with self._records.write() as connection:
            connection.execute(delete(checkpoints).where(checkpoints.c.id == id_))
        self._vault.remove(self._folder / id_)

    def expire(self) -> int:
        """Remove expired checkpoints, and overwritten ones without samplers; return their number. The server may be
        running."""
        with self._records.write() as connection:
            expired = list(connection.scalars(select(checkpoints.c.id).where(checkpoints.c.expires < now())))
            retired = list(connection.scalars(select(checkpoints.c.id).where(checkpoints.c.kind == RETIRED)))
            expired += [id_ for id_ in retired if connection.execute(_samplers_of(id_)).first() is None]
            if expired:
                connection.execute(delete(checkpoints).where(checkpoints.c.id.in_(expired)))
        for id_ in expired:
            self._vault.remove(self._folder / id_)
        return len(expired)

    def sweep(self) -> None:
        """Remove expired checkpoints, and leftovers of a crash."""
        with self._records.write() as connection:
            connection.execute(delete(checkpoints).where(checkpoints.c.expires < now()))
            known = {row.id for row in connection.execute(select(checkpoints.c.id))}
        for folder in self._folder.iterdir():
            if folder.name not in known:
                self._vault.remove(folder)

    def _row(self, id_: str) -> Any:
        with self._records.read() as connection:
            return connection.execute(select(checkpoints).where(checkpoints.c.id == id_)).first()

    def _change(self, tenant: str, id_: str, **values: Any) -> None:
        self.get(tenant, id_)
        with self._records.write() as connection:
            connection.execute(update(checkpoints).where(checkpoints.c.id == id_).values(values))

    def _theirs(self, tenant: str, row: Any, what: str, *, public: bool = False) -> Checkpoint:
        hidden = row is None or (row.tenant != tenant and not (public and row.public))
        if hidden or (row.expires and row.expires < now()):
            raise Unknown(f"no checkpoint {what!r}", action="list the checkpoints that there are")
        return _checkpoint_of(row._asdict())


def _of(tenant: str, model: str) -> ColumnElement[bool]:
    """Checkpoints of a tenant's model, by the id that its client knows."""
    known = func.coalesce(models.c.name, models.c.id) == model
    mine = select(models.c.id).where(models.c.tenant == tenant, known)
    return (checkpoints.c.tenant == tenant) & checkpoints.c.model.in_(mine)


def _samplers_of(id_: str) -> Select[Any]:
    """Samplers of a checkpoint, in sessions that are open."""
    joined = select(samplers.c.id).join(sessions, sessions.c.id == samplers.c.session)
    return joined.where(samplers.c.checkpoint == id_, sessions.c.closed.is_(False)).limit(1)


def _checkpoint_of(row: Mapping[str, Any]) -> Checkpoint:
    return Checkpoint(
        model=json.loads(row["about"]).get("model") or row["model"],
        **{name: row[name] for name in ("id", "tenant", "kind", "name", "base", "created", "expires", "size")},
        recipe=json.loads(row["recipe"]),
        public=bool(row.get("public")),
        metadata=json.loads(row["about"]).get("metadata") or {},
    )


def check_ttl(seconds: float | None) -> None:
    """Checks a checkpoint's time to live, in seconds.

    Raises:
        UserError: a time to live that is too short or too long.
    """
    if seconds is not None and not SHORTEST <= seconds <= LONGEST:
        raise UserError(f"ttl_seconds is {seconds:g}", action=f"choose {SHORTEST} to {LONGEST}, or none to keep it")
