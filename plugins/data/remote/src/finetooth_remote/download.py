"""Files fetched once: kept by the hash of their content, found again by their address if they are unchanged there."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from finetooth_hooks import DataError

from finetooth_remote.address import Address
from finetooth_remote.failures import Failure, failure_of
from finetooth_remote.filesystem import file_system, open_stream

READ_BYTES = 1 << 20
WAITS = (0.5, 1.0, 2.0, 4.0)
"""Seconds before each new attempt, after a failure that may pass."""
UNREACHED_WAITS = WAITS[:1]
"""Where no server answered at all: a mistake in the address, or no network, is reported within seconds."""
MARGIN = 100_000_000
"""Bytes that are left free on the disk."""
ETAGS = ("ETag", "etag", "e_tag")
CHANGES = ("LastModified", "Last-Modified", "last_modified", "updated", "mtime")


@dataclass(frozen=True)
class Version:
    """The server's identification of an address's content.

    Attributes:
        size: bytes, None if it does not say.
        etag, changed: empty if it does not say.
    """

    size: int | None
    etag: str
    changed: str

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Version:
        """From a file system's facts about a file."""
        size = info.get("size")
        return cls(None if size is None else int(size), _first(info, ETAGS), _first(info, CHANGES))

    @property
    def tells(self) -> bool:
        """Whether other content would show."""
        return bool(self.etag or (self.changed and self.size is not None))


class Downloads:
    """Files that were fetched, in a folder.

    Args:
        folder: `addresses/` records the content of each address, `contents/HASH/NAME` is the content.
        note: receives notes about downloads and impossible checks.
    """

    def __init__(self, folder: Path, note: Callable[[str], None] = lambda text: None) -> None:
        self._folder, self._note = folder, note

    def fetch(self, address: Address) -> Path:
        """The file, from here if the address still has the same content. A partial file is never seen: it gets its
        place when all of it is here.

        Raises:
            DataError: the file does not exist, access is denied, or the server keeps failing.
        """
        for attempt, wait in enumerate((*WAITS, None)):
            try:
                return self._fetch(address)
            except Exception as error:  # the libraries of the stores raise classes of their own
                failure = failure_of(error)
                if failure is None:
                    raise
                given_up = failure.unreached and attempt >= len(UNREACHED_WAITS)
                if failure.final or wait is None or given_up:
                    return self._instead(address, failure, error)
                time.sleep(wait)
        raise AssertionError("unreachable")

    def _fetch(self, address: Address) -> Path:
        system = file_system(address)
        now = Version.of(system.info(address.full))
        known = self._cached(address)
        if known is not None and known[1] == now and now.tells:
            return known[0]
        if not now.tells:
            self._note(f"{address.shown}: the server does not say which version it has, so it is fetched every time")
        self._check_room(address, now)
        began = time.monotonic()
        path, size, digest = self._receive(address, system, now)
        if Version.of(system.info(address.full)) != now:
            path.unlink()
            raise Failure("the file changed while it was fetched")
        place = self._folder / "contents" / digest / address.name
        place.parent.mkdir(parents=True, exist_ok=True)
        path.replace(place)
        self._remember(address, digest, now)
        self._note(f"{address.shown}: {size:,} bytes fetched in {time.monotonic() - began:.1f} s")
        return place

    def _receive(self, address: Address, system: Any, expected: Version) -> tuple[Path, int, str]:
        """Download all bytes into a separate file; returns their number and SHA-256."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f".partial-{secrets.token_hex(8)}"
        try:
            with path.open("xb") as file, open_stream(system, address) as stream:
                size, digest = _copy(stream, file)
            if expected.size is not None and size != expected.size:
                raise Failure(f"{size:,} of {expected.size:,} bytes arrived")
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path, size, digest

    def _instead(self, address: Address, failure: Failure, error: Exception) -> Path:
        """The earlier download, if the server does not answer; else raises the error."""
        known = self._cached(address)
        reason = address.hide(str(failure))
        if known is not None and not failure.final:
            self._note(f"{address.shown} cannot be asked ({reason}); the run uses the file fetched before")
            return known[0]
        raise DataError(address.shown, reason, action=failure.action) from None

    def _check_room(self, address: Address, now: Version) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._folder).free
        if now.size is not None and now.size + MARGIN > free:
            raise DataError(
                address.shown,
                f"it has {now.size:,} bytes, and {free:,} are free in {self._folder}",
                action="make room, or set FT_CACHE to a folder on another disk",
            )

    def _entry(self, address: Address) -> Path:
        return self._folder / "addresses" / f"{address.key}.json"

    def _cached(self, address: Address) -> tuple[Path, Version] | None:
        """The file that an address had, if it is still here and whole."""
        try:
            content = json.loads(self._entry(address).read_bytes())
            version = Version(**content["version"])
            path = self._folder / "contents" / str(content["sha256"]) / address.name
            size = path.stat().st_size
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return (path, version) if size == content["bytes"] else None

    def _remember(self, address: Address, digest: str, version: Version) -> None:
        place = self._entry(address)
        place.parent.mkdir(parents=True, exist_ok=True)
        size = (self._folder / "contents" / digest / address.name).stat().st_size
        beside = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
        beside.write_text(json.dumps({"sha256": digest, "bytes": size, "version": asdict(version)}), encoding="utf-8")
        beside.replace(place)


def _copy(stream: BinaryIO, file: BinaryIO) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    while content := stream.read(READ_BYTES):
        file.write(content)
        digest.update(content)
        size += len(content)
    return size, digest.hexdigest()


def _first(info: Mapping[str, Any], names: tuple[str, ...]) -> str:
    with suppress(StopIteration):
        return str(next(info[name] for name in names if info.get(name)))
    return ""
