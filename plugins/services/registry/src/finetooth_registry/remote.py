"""A registry at a URL, served by `ft registry serve`. All its answers are checked as untrusted."""

from __future__ import annotations

import hashlib
import json
import os
import random
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
from finetooth_hooks import Verdict
from finetooth_hooks.errors import UserError
from finetooth_toolbox.files.manifests import sha256_of
from pydantic import ValidationError
from securesystemslib.signer import CryptoSigner, Key  # type: ignore[attr-defined]

from finetooth_registry import records
from finetooth_registry.anywhere import AnyRegistry, Event, Version, VersionTaken, evidence
from finetooth_registry.policy import Policy
from finetooth_registry.registry import PATIENCE, Registry

PART = 8 * 2**20
"""Bytes of a blob per request."""
LARGEST = 2**30
"""Most bytes of an answer that is read as a whole."""
KEY = "FT_REGISTRY_API_KEY"
"""The variable with the API key, from `ft keys create`."""
CONFLICT = 409


def open_registry(where: str) -> AnyRegistry:
    """The registry in a folder or at a URL.

    Raises:
        UserError: nothing is there.
    """
    return RemoteRegistry(where) if where.startswith(("http://", "https://")) else Registry(Path(where))


class Server:
    """Requests to a server, answered with JSON or a one-line error."""

    def __init__(self, url: str) -> None:
        key = os.environ.get(KEY, "")
        headers = {"Accept-Encoding": "identity", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._http = httpx.Client(base_url=f"{url.rstrip('/')}/registry", headers=headers, timeout=PATIENCE)
        self.url, self.key_id = url, "".join(key.split("_")[1:2])

    def ask(self, method: str, path: str, **parts: Any) -> Any:
        """The JSON of an answer.

        Raises:
            VersionTaken: another client was faster.
            UserError: the server refuses, or cannot be reached.
        """
        with self.answer(method, path, **parts) as answer:
            content = b""
            for piece in answer.iter_bytes(2**20):
                content += piece
                if len(content) > LARGEST:
                    raise UserError(f"{self.url} answers with more than 1 GiB", action="ask who runs the registry")
            try:
                return json.loads(content)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{self.url} answers with no JSON", action="check the URL") from error

    @contextmanager
    def answer(self, method: str, path: str, **parts: Any) -> Iterator[httpx.Response]:
        """A streamed answer."""
        try:
            with self._http.stream(method, path, **parts) as answer:
                if answer.headers.get("Content-Encoding", "identity") != "identity":  # it could unpack to any size
                    raise UserError(f"{self.url} answers in a packed form", action="ask who runs the registry")
                if answer.status_code >= 400:
                    answer.read()
                    raise _refusal(self.url, answer)
                yield answer
        except httpx.TransportError as error:
            text = f"{self.url}: {error or type(error).__name__}"
            action = "check the URL, and that ft registry serve runs there"
            if "certificate" in text:
                action = "copy the certificate that it names at its start, and set SSL_CERT_FILE to the copy"
            raise UserError(text, action=action) from error


def _refusal(url: str, answer: httpx.Response) -> UserError:
    try:
        reason = str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        reason = f"HTTP status {answer.status_code}"
    kind = VersionTaken if answer.status_code == CONFLICT else UserError
    action = f"set {KEY} to a key of the server" if answer.status_code == 401 else ""
    return kind(f"{url}: {reason}", action=action)


class RemoteBlobs:
    """Blobs of a server, with hashes checked during the download."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def put(self, source: Path) -> str:
        """Send a file in parts; returns its SHA-256. The server checks its hash before storing it."""
        sha256, size, upload = sha256_of(source), source.stat().st_size, secrets.token_hex(16)
        with source.open("rb") as reader:
            for offset in range(0, size, PART) or (0,):
                where = {"upload": upload, "offset": offset, "size": size}
                self._server.ask("PUT", f"/blobs/{sha256}", params=where, content=reader.read(PART))
        return sha256

    def read(self, sha256: str) -> bytes:
        """The bytes of a small blob.

        Raises:
            UserError: the blob is missing, damaged or large.
        """
        content = b""
        for piece in self._pieces(sha256):
            content += piece
            if len(content) > records.LARGEST:
                raise UserError(f"blob {sha256} is too large for a record", action="ask who runs the registry")
        return content

    def copy(self, sha256: str, target: Path) -> None:
        """Write a blob to a new file.

        Raises:
            UserError: the blob is missing or damaged; the file is not there then.
        """
        try:
            with target.open("xb") as writer:
                for piece in self._pieces(sha256):
                    writer.write(piece)
        except UserError:
            target.unlink()
            raise

    def check(self, sha256: str) -> None:
        """Read a blob and compare it with its name.

        Raises:
            UserError: the blob is missing or damaged.
        """
        for _ in self._pieces(sha256):
            pass

    def _pieces(self, sha256: str) -> Iterator[bytes]:
        digest = hashlib.sha256()
        with self._server.answer("GET", f"/blobs/{sha256}") as answer:
            for piece in answer.iter_bytes(2**20):
                digest.update(piece)
                yield piece
        if digest.hexdigest() != sha256:
            raise UserError(f"blob {sha256} was changed", action="ask who runs the registry")


class RemoteRegistry(AnyRegistry):
    """See `AnyRegistry`. Keys are trusted and revoked at the registry's server."""

    def __init__(self, url: str) -> None:
        self._server = Server(url)
        self.blobs = RemoteBlobs(self._server)

    @property
    def place(self) -> str:
        """The URL and the key's id: another tenant's key opens another registry."""
        return " ".join(filter(None, (self._server.url, self._server.key_id)))

    @property
    def policy(self) -> Policy:
        try:
            return Policy.model_validate(self._server.ask("GET", "/policy"))
        except ValidationError as error:
            raise UserError("the server's policy cannot be read", action="use the same version of finetooth") from error

    def trusted(self) -> dict[str, Key]:
        keys = self._server.ask("GET", "/keys")
        return {name: records.key_from_json(text, f"key {name}") for name, text in keys.items()}

    def versions(self, model: str = "", newest: int = 0, artifact: str = "") -> list[Version]:
        params = {"model": model, "newest": newest, "artifact": artifact}
        return [version_of(fields) for fields in self._server.ask("GET", "/versions", params=params)]

    def record(self, version: Version) -> bytes:
        """Readers may see the origins of a version without fetching files."""
        record = str(self._server.ask("GET", f"/versions/{version.model}/{version.number}/record")).encode()
        if hashlib.sha256(record).hexdigest() != version.record:
            raise UserError(f"the record of {version.called} was changed", action="ask who runs the registry")
        return record

    def metrics(self, version: Version) -> tuple[dict[str, float], dict[str, tuple[Mapping[str, Any], ...]]]:
        reply = self._server.ask("GET", f"/versions/{version.model}/{version.number}/metrics")
        return reply["metrics"], {name: tuple(rows) for name, rows in reply["answers"].items()}

    def events(
        self, model: str = "", kinds: Sequence[str] = (), *, after: int = 0, most: int = 0, newest: int = 0
    ) -> list[Event]:
        params = {"model": model, "kinds": ",".join(kinds), "after": after, "most": most, "newest": newest}
        return [Event(**fields) for fields in self._server.ask("GET", "/log", params=params)]

    def admit(self, model: str, about: Mapping[str, Any]) -> None:
        self._missing(model, about, [])

    def _missing(self, model: str, about: Mapping[str, Any], blobs: list[str]) -> set[str]:
        """Which blobs the server lacks, once it has admitted the data."""
        request = {"model": model, "about": dict(about), "blobs": blobs}
        return set(self._server.ask("POST", "/admission", json=request)["missing"])

    def add(
        self, model: str, files: Mapping[str, Path], about: Mapping[str, Any], signer: CryptoSigner | None,
        *, metrics: Mapping[str, float], failed: str = "",
    ) -> Version:  # fmt: skip
        stored = {name: sha256_of(path) for name, path in files.items()}
        missing = self._missing(model, about, sorted(set(stored.values())))
        for name, path in files.items():  # files are sent only after the policy admits the version
            if stored[name] in missing and self.blobs.put(path) != stored[name]:
                raise UserError(f"{path} changed while it was sent", action="try again")
        last = time.monotonic() + PATIENCE
        while True:
            record, number = self._record(model, stored, about, signer)
            try:
                sent = {"record": record.decode(), "metrics": dict(metrics), "failed": failed}
                return version_of(self._server.ask("POST", f"/versions/{model}/{number}", json=sent))
            except VersionTaken:
                if time.monotonic() > last:
                    raise
                time.sleep(random.uniform(0.0, 0.1))

    def _record(
        self, model: str, stored: Mapping[str, str], about: Mapping[str, Any], signer: CryptoSigner | None
    ) -> tuple[bytes, int]:
        """The record of the next version, signed here: a private key leaves no machine."""
        reply = self._server.ask("GET", f"/versions/{model}/next")
        content = records.statement(
            stored, {"name": model, "number": reply["number"], "registered": reply["now"], **about}
        )
        return records.sign(content, signer) if signer else records.unsigned(content), reply["number"]

    def measure(
        self, version: Version, metrics: Mapping[str, float], answers: Mapping[str, Sequence[Mapping[str, Any]]],
        settings: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:  # fmt: skip
        answer_rows = {name: list(rows) for name, rows in answers.items()}
        sent = {"metrics": dict(metrics), "answers": answer_rows, "settings": dict(settings or {})}
        self._server.ask("POST", f"/versions/{version.model}/{version.number}/metrics", json=sent)

    def replace_record(self, version: Version, record: bytes) -> None:
        path = f"/versions/{version.model}/{version.number}/record"
        self._server.ask("POST", path, json={"record": record.decode()})

    def revert(self, version: Version, reason: str) -> None:
        self._server.ask("POST", f"/versions/{version.model}/{version.number}/revert", json={"why": reason})

    def hold(self, version: Version, channel: str, reason: str) -> None:
        sent = {"channel": channel, "why": reason}
        self._server.ask("POST", f"/versions/{version.model}/{version.number}/hold", json=sent)

    def promote(self, version: Version, channel: str, *, dry_run: bool) -> tuple[bool, dict[str, Verdict]]:
        """Let the server ask the gates of a channel; see `releasing.promote`."""
        path = f"/versions/{version.model}/{version.number}/promote"
        reply = self._server.ask("POST", path, json={"channel": channel, "dry_run": dry_run})
        return reply["passed"], {name: Verdict(**verdict) for name, verdict in reply["gates"].items()}

    def watched(
        self, version: Version, channel: str, metrics: Mapping[str, float], verdicts: Mapping[str, Verdict]
    ) -> int:
        sent = {"channel": channel, "metrics": dict(metrics), "gates": evidence(verdicts)}
        path = f"/versions/{version.model}/{version.number}/watched"
        return int(self._server.ask("POST", path, json=sent)["cycles"])

    def roll_back(self, model: str, channel: str, reason: str) -> Version:
        return version_of(self._server.ask("POST", f"/channels/{model}/{channel}/rollback", json={"why": reason}))


def version_of(fields: Mapping[str, Any]) -> Version:
    """A version from the JSON of a server."""
    return Version(**{**fields, "channels": tuple(fields["channels"])})
