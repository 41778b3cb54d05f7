"""A registry in a folder: `registry.db`, `blobs/`, `policy.yaml`.

Everything that happens is an event in an append-only log. Each event holds the SHA-256 of the one before it, so a
changed, missing or reordered event shows.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, fields
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

from finetooth_hooks import Verdict
from finetooth_hooks.errors import UserError
from finetooth_toolbox.files.locks import FolderHeldError, lock_folder
from securesystemslib.signer import CryptoSigner, Key  # type: ignore[attr-defined]
from sqlalchemy import Connection, RowMapping, Select, delete, exists, func, insert, or_, select, update
from sqlalchemy.exc import DatabaseError

from finetooth_registry import decisions, policy, records, schema
from finetooth_registry.anywhere import MADE, AnyRegistry, Event, Version, VersionTaken, evidence, files_of
from finetooth_registry.blobs import Blobs
from finetooth_registry.bucket import ADDRESS, BucketBlobs, open_blobs
from finetooth_registry.tables import CHANNELS, EVENTS, KEYS, MEASUREMENTS, VERSIONS
from finetooth_registry.verified import NOTHING, Verified
from finetooth_registry.verifying import TRAINED_OVER, data_refusal

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
MANY = 500
"""Number of models above which all channels are read at once."""
_SHOWN = [column for column in VERSIONS.c if column is not VERSIONS.c.artifact]
PATIENCE = 60
"""Seconds to wait for another writing process."""


class Registry(AnyRegistry):
    """A registry in a folder; see `AnyRegistry`.

    Args:
        folder: of the registry.
        clock: the time now; UTC.
    """

    blobs: Blobs

    def __init__(self, folder: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        if not schema.is_registry(folder):
            raise UserError(f"{folder} holds no registry", action=f"make one with ft registry init {folder}")
        self.folder, self.blobs, self._clock = folder, open_blobs(folder), clock
        self._database = schema.open_database(folder)
        self._thread = threading.local()
        self._reader = self._database.execution_options(isolation_level="AUTOCOMMIT")  # fewer requests to the server
        self._up_to_date()

    @classmethod
    def create(cls, folder: Path, database: str = "", blobs: str = "") -> Registry:
        """Make an empty registry.

        Args:
            database: address of a PostgreSQL database for its tables; empty: see `schema.create_database`.
            blobs: address of a bucket for its blobs; empty: in the folder.

        Raises:
            UserError: the folder or the bucket is not empty, or the database or the bucket cannot be used.
        """
        if blobs:
            BucketBlobs(folder / "blobs", blobs).check_unused()
        allowed = {schema.BEGUN, ADDRESS} if schema.shared(folder) is None else {schema.BEGUN, policy.FILE}
        if folder.exists() and {file.name for file in folder.iterdir()} - allowed:
            raise UserError(f"{folder} is not empty", action="choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ADDRESS).unlink(missing_ok=True)
        if blobs:
            (folder / ADDRESS).write_text(f"{blobs}\n", encoding="utf-8")
        with _said(folder):
            schema.create_database(folder, database)
        if schema.shared(folder) is None:
            (folder / policy.FILE).write_text(policy.START, encoding="utf-8")
        registry = cls(folder)
        Verified(registry.place).forget()
        return registry

    def _up_to_date(self) -> None:
        """Bring the tables up to date.

        Raises:
            UserError: they are missing or from a later finetooth.
        """
        with self.reading() as connection:
            at = schema.version_of(connection)
        if at != schema.HEAD:
            schema.check(at, self.folder)
            with self.alone(), _said(self.folder):
                schema.migrate(self._database, self._artifact_of)

    def _artifact_of(self, record: str) -> str | None:
        """SHA-256 of the artifact's manifest from a stored record; None if it names none or is damaged."""
        try:
            return files_of(records.read(self.blobs.read(record))).get(MADE)
        except UserError:
            return None

    def close(self) -> None:
        """Close the connections to the database."""
        self._database.dispose()

    @property
    def place(self) -> str:
        return str(self.folder.resolve())

    @property
    def policy(self) -> policy.Policy:
        whole = None if (self.folder / policy.FILE).is_file() else schema.shared(self.folder)
        return policy.load_policy(whole or self.folder)

    # --- keys ---------------------------------------------------------------------------------------------------------

    def trust(self, name: str, key: Key) -> None:
        """Trust a public key under a name.

        Raises:
            UserError: the name is taken or is not a name.
        """
        _check_name(name, "key")
        with self._changing() as connection:
            if connection.execute(select(KEYS.c.name).where(KEYS.c.name == name)).first():
                raise UserError(f"key {name!r} exists", action="take another name; revoked names stay taken")
            row = {"name": name, "public": records.key_to_json(key), "added": self._now()}
            connection.execute(insert(KEYS).values(row))
            self._log(connection, "key trusted", {"name": name, "keyid": key.keyid})

    def revoke(self, name: str) -> None:
        """Stop trusting a key; its signatures no longer count.

        Raises:
            UserError: no trusted key has this name.
        """
        with self._changing() as connection:
            open_ = (KEYS.c.name == name) & KEYS.c.revoked.is_(None)
            if connection.execute(update(KEYS).where(open_).values(revoked=self._now())).rowcount != 1:
                there = ", ".join(self.trusted()) or "there is none"
                raise UserError(f"no trusted key is called {name!r}", action=f"trusted keys: {there}")
            self._log(connection, "key revoked", {"name": name})

    def trusted(self) -> dict[str, Key]:
        with self.reading() as connection:
            rows = connection.execute(select(KEYS.c.name, KEYS.c.public).where(KEYS.c.revoked.is_(None))).all()
        return {name: records.key_from_json(public, f"key {name}") for name, public in rows}

    # --- versions -----------------------------------------------------------------------------------------------------

    def add(
        self, model: str, files: Mapping[str, Path], about: Mapping[str, Any], signer: CryptoSigner | None,
        *, metrics: Mapping[str, float], failed: str = "",
    ) -> Version:  # fmt: skip
        self.admit(model, about)
        stored = {name: self.blobs.put(path) for name, path in files.items()}
        with self._changing() as connection:
            number = self._next(connection, model)
            content = records.statement(stored, {"name": model, "number": number, "registered": self._now(), **about})
            record = records.sign(content, signer) if signer else records.unsigned(content)
            return self._register(connection, model, number, record, metrics, failed)

    def admit(self, model: str, about: Mapping[str, Any]) -> None:
        _check_name(model, "model")
        if refusal := data_refusal(self.policy, about, lambda called: self.record(self.version(called))):
            with self._changing() as connection:
                self._log(connection, "refused", {"model": model, "why": refusal, "run": str(about.get("run", ""))})
            own = "correct data.classification in the recipe"
            action = "train over another base" if refusal.startswith(TRAINED_OVER) else own
            raise UserError(f"{model}: {refusal}", action=action)

    def enter(
        self, model: str, number: int, record: bytes, *, metrics: Mapping[str, float], failed: str = ""
    ) -> Version:
        """Register a version from a record made elsewhere, whose files are stored.

        Raises:
            VersionTaken: the number is not the next one.
            UserError: the policy refuses the data, the record is for another version, or a file is missing.
        """
        content = records.read(record)
        about = content["predicate"]
        if (about["name"], about["number"]) != (model, number):
            raise UserError(f"the record is of {about['name']}@v{about['number']}", action="sign it for this version")
        self.admit(model, about)
        self._check_stored(content)
        with self._changing() as connection:
            if number != self._next(connection, model):
                raise VersionTaken(
                    f"{model}@v{number} is not the next version", action="sign the record for the next one"
                )
            return self._register(connection, model, number, record, metrics, failed)

    def next_version(self, model: str) -> dict[str, Any]:
        """The `number` of the next version, and the time `now`."""
        with self.reading() as connection:
            return {"number": self._next(connection, model), "now": self._now()}

    def _next(self, connection: Connection, model: str) -> int:
        last = connection.execute(select(func.max(VERSIONS.c.number)).where(VERSIONS.c.model == model)).scalar()
        return 0 if last is None else last + 1

    def _check_stored(self, content: Mapping[str, Any]) -> None:
        """
        Raises:
            UserError: a file of a statement is not stored.
        """
        missing = [name for name, sha256 in files_of(content).items() if self.blobs.size(sha256) is None]
        if missing:
            raise UserError(f"the file {missing[0]} is not stored", action="send the files first")

    def _register(
        self, connection: Connection, model: str, number: int, record: bytes, metrics: Mapping[str, float], failed: str
    ) -> Version:
        content = records.read(record)
        self._check_stored(content)  # again: blobs without references may be collected meanwhile
        status = "failed" if failed else "registered"
        version = Version(model, number, self.blobs.put_bytes(record), status, failed, self._now())
        row = asdict(version)
        del row["channels"]
        connection.execute(insert(VERSIONS).values(**row, artifact=files_of(content).get(MADE)))
        self._measure(connection, model, number, metrics, {})
        detail = {
            "model": model,
            "number": number,
            "record": version.record,
            "status": status,
            "metrics": dict(metrics),
        }
        self._log(connection, "registered", detail)
        return version

    def measure(
        self, version: Version, metrics: Mapping[str, float], answers: Mapping[str, Sequence[Mapping[str, Any]]],
        settings: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:  # fmt: skip
        with self._changing() as connection:
            digests = {name: self.blobs.put_bytes(json.dumps(list(rows)).encode()) for name, rows in answers.items()}
            self._measure(connection, version.model, version.number, metrics, digests)
            detail = {"model": version.model, "number": version.number, "metrics": dict(metrics), "answers": digests}
            self._log(connection, "measured", {**detail, **({"settings": settings} if settings else {})})

    def versions(self, model: str = "", newest: int = 0, artifact: str = "") -> list[Version]:
        query = select(*_SHOWN).where(VERSIONS.c.model == model) if model else select(*_SHOWN)
        query = query.where(VERSIONS.c.artifact == artifact) if artifact else query
        if newest:
            order = (VERSIONS.c.number,) if model else (VERSIONS.c.added, VERSIONS.c.model, VERSIONS.c.number)
            return self._chosen(query.order_by(*(column.desc() for column in order)).limit(newest))[::-1]
        return self._chosen(query.order_by(VERSIONS.c.model, VERSIONS.c.number))

    def _chosen(self, query: Select[Any]) -> list[Version]:
        with self.reading() as connection:
            rows: Sequence[RowMapping] = connection.execute(query).mappings().all()
            models = {row["model"] for row in rows}
            channels: dict[tuple[str, int], list[str]] = {}
            where = [CHANNELS.c.model.in_(models)] if len(models) < MANY else []
            for held_model, channel, number in connection.execute(select(CHANNELS).where(*where)).all():
                channels.setdefault((held_model, number), []).append(channel)
        return [Version(**row, channels=tuple(sorted(channels.get((row["model"], row["number"]), ())))) for row in rows]

    def version(self, reference: str) -> Version:
        model, _, where = reference.removeprefix("registry:").partition("@")
        mine = select(*_SHOWN).where(VERSIONS.c.model == model)
        if where[:1] == "v" and where[1:].isdigit():
            chosen = self._chosen(mine.where(VERSIONS.c.number == int(where[1:][:9])))
        elif where:
            numbers = select(CHANNELS.c.number).where(CHANNELS.c.model == model, CHANNELS.c.channel == where)
            chosen = self._chosen(mine.where(VERSIONS.c.number.in_(numbers)))
        else:
            chosen = self._chosen(mine.order_by(VERSIONS.c.number.desc()).limit(1))
        return chosen[0] if chosen else super().version(reference)  # raises with the missing one

    def released(self) -> list[Version]:
        there = (CHANNELS.c.model == VERSIONS.c.model) & (CHANNELS.c.number == VERSIONS.c.number)
        return self._chosen(select(*_SHOWN).where(exists().where(there)).order_by(VERSIONS.c.model, VERSIONS.c.number))

    def in_channel(self, model: str, channel: str) -> Version | None:
        numbers = select(CHANNELS.c.number).where(CHANNELS.c.model == model, CHANNELS.c.channel == channel)
        chosen = self._chosen(select(*_SHOWN).where(VERSIONS.c.model == model, VERSIONS.c.number.in_(numbers)))
        return chosen[0] if chosen else None

    def metrics(self, version: Version) -> tuple[dict[str, float], dict[str, tuple[Mapping[str, Any], ...]]]:
        with self.reading() as connection:
            mine = (MEASUREMENTS.c.model == version.model) & (MEASUREMENTS.c.number == version.number)
            rows = connection.execute(select(MEASUREMENTS).where(mine).order_by(MEASUREMENTS.c.id)).mappings().all()
        values = {row["metric"]: row["value"] for row in rows if row["value"] is not None}
        blobs = {row["metric"]: row["answers"] for row in rows if row["answers"]}
        return values, {name: tuple(json.loads(self.blobs.read(sha256))) for name, sha256 in blobs.items()}

    def replace_record(self, version: Version, record: bytes) -> None:
        added = records.added_signatures(self.record(version), record)
        with self._changing() as connection:
            sha256 = self.blobs.put_bytes(record)
            mine = (VERSIONS.c.model == version.model) & (VERSIONS.c.number == version.number)
            mine &= VERSIONS.c.record == version.record
            if connection.execute(update(VERSIONS).where(mine).values(record=sha256)).rowcount != 1:
                raise UserError(f"{version.called} was signed by somebody else meanwhile", action="sign it again")
            detail = {"model": version.model, "number": version.number, "record": sha256}
            self._log(connection, "signed", {**detail, "keyid": ", ".join(added)})

    def revert(self, version: Version, reason: str, signer: CryptoSigner | None = None) -> None:
        if version.channels:
            channels = ", ".join(version.channels)
            raise UserError(f"{version.called} is in {channels}", action="roll the channel back first")
        about = {"channel": "", "decision": decisions.REJECT, "before": None, "why": reason}
        detail = {"model": version.model, "number": version.number, "why": reason}
        statement = decisions.write(self, version, None, about, signer)
        with self._changing() as connection:
            detail[decisions.RECORD] = self.blobs.put_bytes(statement)
            mine = (VERSIONS.c.model == version.model) & (VERSIONS.c.number == version.number)
            connection.execute(update(VERSIONS).where(mine).values(status="reverted", reason=reason))
            self._log(connection, "reverted", detail)

    # --- channels and the log -----------------------------------------------------------------------------------------

    def decide(
        self, version: Version, channel: str, verdicts: Mapping[str, Verdict], predecessor: Version | None,
        signer: CryptoSigner | None = None,
    ) -> bool:  # fmt: skip
        """Record a decision, and move the channel if every gate passed.

        Args:
            signer: signs the decision; None: it is not signed.

        Raises:
            UserError: the version failed or was reverted.
        """
        if version.status != "registered":
            raise UserError(f"{version.called} is {version.status}: {version.reason}", action="take another version")
        word = decisions.outcome(verdicts)
        passed = word == decisions.PROMOTE
        about = {
            "channel": channel, "decision": word, "before": None if predecessor is None else predecessor.number,
            "gates": evidence(verdicts),
        }  # fmt: skip
        detail = {"model": version.model, "number": version.number, **about}
        statement = decisions.write(self, version, predecessor, about, signer)
        with self._changing() as connection:
            detail[decisions.RECORD] = self.blobs.put_bytes(statement)
            if passed:
                self._move(connection, version.model, channel, version.number)
            self._log(connection, "decided", detail)
        return passed

    def hold(self, version: Version, channel: str, reason: str, signer: CryptoSigner | None = None) -> None:
        self.channel(channel)
        if not reason and not self.held(version, channel):
            raise UserError(f"{version.called} is not held back from {channel}", action="ft registry log shows holds")
        about = {"channel": channel, "decision": decisions.HOLD if reason else decisions.LIFT, "why": reason}
        statement = decisions.write(self, version, None, {**about, "before": None}, signer)
        detail = {"model": version.model, "number": version.number, "channel": channel, "why": reason}
        with self._changing() as connection:
            detail[decisions.RECORD] = self.blobs.put_bytes(statement)
            self._log(connection, "held" if reason else "hold lifted", detail)

    def watched(
        self, version: Version, channel: str, metrics: Mapping[str, float], verdicts: Mapping[str, Verdict]
    ) -> int:
        passed = all(verdict.passed for verdict in verdicts.values())
        detail = {
            "model": version.model, "number": version.number, "channel": channel, "passed": passed,
            "metrics": dict(metrics), "gates": evidence(verdicts),
        }  # fmt: skip
        with self._changing() as connection:
            self._log(connection, "watched", detail)
            watched = select(EVENTS.c.detail).where(EVENTS.c.kind == "watched").order_by(EVENTS.c.sequence.desc())
            about = [EVENTS.c.detail[name].as_string() == str(detail[name]) for name in ("number", "channel")]
            about.append(EVENTS.c.model == version.model)
            earlier = connection.execute(watched.where(*about).execution_options(yield_per=100)).scalars()
            return sum(1 for _ in takewhile(lambda cycle: cycle["passed"], earlier))

    def roll_back(self, model: str, channel: str, reason: str, signer: CryptoSigner | None = None) -> Version:
        now = self.in_channel(model, channel)
        if now is None:
            raise UserError(f"{model} has no version in {channel}", action="ft registry list shows them")
        moves = [event.detail for event in self.events(model, ("decided", "rolled back"))]
        mine = [
            move for move in moves if move["channel"] == channel and move.get("decision") in (None, decisions.PROMOTE)
        ]
        before = next((move["before"] for move in reversed(mine) if move["number"] == now.number), None)
        if before is None:
            raise UserError(f"{channel} held no version of {model} before v{now.number}", action="promote another one")
        back = self.version(f"{model}@v{before}")
        about = {"channel": channel, "decision": decisions.ROLLBACK, "before": now.number, "why": reason}
        statement = decisions.write(self, back, now, about, signer)
        with self._changing() as connection:
            self._move(connection, model, channel, before)
            earlier = [move["before"] for move in mine if move["number"] == before]
            detail = {"model": model, "channel": channel, "number": before, "from": now.number, "why": reason}
            detail[decisions.RECORD] = self.blobs.put_bytes(statement)
            self._log(connection, "rolled back", {**detail, "before": earlier[-1] if earlier else None})
        return self.version(f"{model}@v{before}")

    def events(
        self, model: str = "", kinds: Sequence[str] = (), *, after: int = 0, most: int = 0, newest: int = 0
    ) -> list[Event]:
        query = select(*(EVENTS.c[field.name] for field in fields(Event))).where(EVENTS.c.sequence > after)
        if model:
            query = query.where(or_(EVENTS.c.model == model, EVENTS.c.model.is_(None)))
        if kinds:
            query = query.where(EVENTS.c.kind.in_(kinds))
        query = query.order_by(EVENTS.c.sequence.desc() if newest else EVENTS.c.sequence).limit(newest or most or None)
        with self.reading() as connection:
            made = [Event(*row) for row in connection.execute(query)]
        return made[::-1] if newest else made

    def _move(self, connection: Connection, model: str, channel: str, number: int) -> None:
        mine = (CHANNELS.c.model == model) & (CHANNELS.c.channel == channel)
        connection.execute(delete(CHANNELS).where(mine))
        connection.execute(insert(CHANNELS).values(model=model, channel=channel, number=number))

    def _measure(
        self, connection: Connection, model: str, number: int, metrics: Mapping[str, float], answers: Mapping[str, str]
    ) -> None:
        at = self._now()
        rows = [{"metric": name, "value": value, "answers": None} for name, value in metrics.items()]
        rows += [{"metric": name, "value": None, "answers": sha256} for name, sha256 in answers.items()]
        if rows:
            connection.execute(insert(MEASUREMENTS), [{"model": model, "number": number, "at": at, **r} for r in rows])

    def _log(self, connection: Connection, kind: str, detail: Mapping[str, Any]) -> None:
        last = connection.execute(
            select(EVENTS.c.sequence, EVENTS.c.sha256).order_by(EVENTS.c.sequence.desc()).limit(1)
        ).first()
        sequence, previous = (last[0] + 1, last[1]) if last else (NOTHING[0] + 1, NOTHING[1])
        event = Event(sequence, self._now(), kind, json.loads(json.dumps(detail)), previous, "")
        connection.execute(insert(EVENTS).values(
            sequence=sequence, at=event.at, kind=kind, detail=event.detail, previous=previous, sha256=event.expected(),
            model=event.detail.get("model"),
        ))  # fmt: skip

    def _now(self) -> str:
        return self._clock().strftime("%Y-%m-%dT%H:%M:%SZ")

    @contextmanager
    def _changing(self) -> Iterator[Connection]:
        """A transaction; one writer at a time."""
        with _said(self.folder), self.alone(), self._database.begin() as connection:
            yield connection

    @contextmanager
    def alone(self) -> Iterator[None]:
        """A connection of the only writer; waits for another one."""
        last = time.monotonic() + PATIENCE
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(lock_folder(self.folder))
                    break
                except FolderHeldError as error:
                    if time.monotonic() > last:
                        text = f"{self.folder}: process {error.who} has been changing the registry for {PATIENCE} s"
                        raise UserError(text, action="try again, or end that process") from None
                    time.sleep(0.02)
            yield

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for reading; each query sees committed data."""
        shared: Connection | None = getattr(self._thread, "connection", None)
        with _said(self.folder), nullcontext(shared) if shared else self._reader.connect() as connection:
            yield connection

    @contextmanager
    def reading_together(self) -> Iterator[None]:
        """Share one connection for all reads of this thread in the `with` block."""
        with self.reading() as self._thread.connection:
            try:
                yield
            finally:
                self._thread.connection = None


@contextmanager
def _said(folder: Path) -> Iterator[None]:
    """The error of a folder's database in one line."""
    try:
        yield
    except DatabaseError as error:
        reason = str(error.orig or error).splitlines()[0]
        raise UserError(f"the database of {folder}: {reason}", action="restore the registry") from error


def _check_name(name: str, what: str) -> None:
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot name a {what}", action="take lower case letters, digits, '.', '_' and '-', at most 64"
        )
