"""The cache of prepared data on disk, by key: find, check, list and prune entries.

FT_CACHE/
  entries/KEY/rows.arrow       the rows
  entries/KEY/manifest.json    describes them; written last, so an entry without it does not count
  entries/.KEY-...             being written, and renamed when it is complete; or being removed
  files/...                    hashes of source files
  choices/KEY.npz              which rows of large data a recipe takes
  media/KEY.json               where the images and sounds of rows lie whose other parts have that key
  plugins/NAME/contents/...    what plugins have fetched; see `fetched`

A process marks the data that it reads (`in_use`), and `prune` never removes them.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from finetooth_hooks.errors import EngineError
from finetooth_toolbox.decisions import Note
from finetooth_toolbox.files.cache_folder import ABANDONED, cache_folder, remove_folder, write_whole
from finetooth_toolbox.files.file_hashes import FileHashes, file_sha256, signature

from finetooth_rows.storage.arrow_rows import ArrowPortions, PortionFacts
from finetooth_rows.storage.fetched import Fetched, fetched, sweep_fetched
from finetooth_rows.storage.in_use import all_unused, hold, unused
from finetooth_rows.storage.token_rows import TokenRows
from finetooth_rows.tally import Tally

ROWS = "rows.arrow"
MANIFEST = "manifest.json"
CHOICES = "choices"
FORGOTTEN = 30 * 24 * 3600
"""Seconds after which an unused choice of rows is removed; it is small."""
RECENT = 24 * 3600
"""Seconds for which data count as in use after a run began to read them, if locks do not work."""


@dataclass(frozen=True)
class CacheEntry:
    """Prepared data in the cache.

    Attributes:
        key: 64 hexadecimal digits.
        folder: their folder.
        bytes: on disk.
        sources: the sources as the recipe names them.
        rows: rows read, of which `tally.used` became data.
        made: time of preparation, seconds since 1970.
        used: time of the last use, likewise.
        tally: counts of the rows, used and left out.
        notes: notes from the preparation.
        portions: facts of the rows' portions.
    """

    key: str
    folder: Path
    bytes: int
    sources: tuple[str, ...]
    rows: int
    made: float
    used: float
    tally: Tally
    notes: tuple[Note, ...]
    portions: tuple[PortionFacts, ...]

    def data(self) -> TokenRows:
        """The rows, memory-mapped; they count as in use as long as they or this entry are referenced.

        Raises:
            OSError, ValueError: the file is missing or not an Arrow file.
        """
        return self._data

    @property
    def held(self) -> tuple[Path, ...]:
        """Files that a reader has marked as in use."""
        return (self.folder / ROWS,)

    @cached_property
    def _data(self) -> TokenRows:
        path = self.folder / ROWS
        descriptor = hold(path)
        try:
            portions = ArrowPortions(path, self.portions, partial(_damaged, self.key, self.folder))
        except BaseException:
            os.close(descriptor)
            raise
        weakref.finalize(portions, os.close, descriptor)
        return TokenRows(portions, [(rows, tokens) for rows, tokens, _ in self.portions])


CacheItem = CacheEntry | Fetched
"""Data that a user may remove: they are prepared or fetched again when needed."""


@dataclass(frozen=True)
class Pruned:
    """The result of `prune`.

    Attributes:
        removed: removed items, the longest unused first.
        in_use: items that stayed because a process reads them.
        bytes: total size of the remaining items.
    """

    removed: tuple[CacheItem, ...] = ()
    in_use: tuple[CacheItem, ...] = ()
    bytes: int = 0


class DataCache:
    """All prepared data of a user.

    Args:
        root: default: `folders.cache_folder()`.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = cache_folder() if root is None else root
        self._entries = self.root / "entries"

    @property
    def hashes(self) -> FileHashes:
        """Hashes of source files."""
        return FileHashes(self.root / "files")

    def entries(self) -> list[CacheEntry]:
        """All entries, the last used first."""
        folders = self._entries.iterdir() if self._entries.is_dir() else ()
        candidates = [_read(folder) for folder in folders if not folder.name.startswith(".")]
        return sorted((entry for entry in candidates if entry is not None), key=lambda entry: -entry.used)

    def media_files(self, key: str) -> list[str]:
        """Files of images, sounds and videos that `keep_media_files` recorded."""
        record = _unsealed(self.root / "media" / f"{key}.json")
        return list(record["files"]) if record is not None else []

    def keep_media_files(self, key: str, files: Sequence[str]) -> None:
        """Store the files for `media_files`: only a reading of the rows finds them, and the cache looks for prepared
        data before that."""
        write_whole(self.root / "media" / f"{key}.json", _sealed({"files": list(files)}))

    def find(self, key: str) -> CacheEntry | None:
        """The entry of a key; None for an empty key. A damaged entry is removed and not returned."""
        folder = self._entries / key
        if not key or not folder.exists():
            return None
        entry = _read(folder)
        if entry is None or not _is_whole(folder):
            remove_folder(folder)
            return None
        try:
            entry.data()
        except (OSError, ValueError):  # Arrow's own errors are ValueErrors
            remove_folder(folder)
            return None
        with suppress(OSError):  # a read-only folder
            (folder / MANIFEST).touch()
        return entry

    @contextmanager
    def writing(self, key: str) -> Iterator[Path]:
        """A folder to write `ROWS` into; `keep` makes an entry of it, else it is deleted at the end of the context."""
        self._entries.mkdir(parents=True, exist_ok=True)
        folder = self._entries / f".{key}-{secrets.token_hex(4)}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def keep(
        self,
        key: str,
        folder: Path,
        *,
        sources: Sequence[str],
        tally: Tally,
        notes: Sequence[Note],
        portions: Sequence[PortionFacts],
    ) -> CacheEntry:
        """Make an entry of a folder from `writing`."""
        path = folder / ROWS
        content = {
            "key": key,
            "sources": list(sources),
            "rows": tally.rows,
            "made": time.time(),
            "tally": tally.as_json(),
            "notes": list(notes),
            "portions": list(portions),
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
            "signature": signature(path),
        }
        write_whole(folder / MANIFEST, _sealed(content))
        target = self._entries / key
        try:
            folder.rename(target)
        except OSError:
            if not target.exists():
                raise
            # another run has made the same entry meanwhile
        entry = self.find(key)
        if entry is None:
            raise EngineError(f"prepared data {key[:12]} were damaged as they were written", action="check the disk")
        return entry

    def remove(self, key: str) -> None:
        """Remove an entry. A run that reads it can continue if the platform allows that."""
        remove_folder(self._entries / key)

    def kept(self) -> list[CacheItem]:
        """Entries, and files that plugins have fetched, the last used first."""
        return sorted([*self.entries(), *fetched(self.root)], key=lambda entry: -entry.used)

    def prune(self, *, older_than: float = 0.0, keep_bytes: int = 0, with_fetched: bool = False) -> Pruned:
        """Remove entries, the longest unused first, never one in use; also remove remains of unfinished work.

        Args:
            with_fetched: also remove files that plugins have fetched.
            older_than: remove only entries not used for so many seconds.
            keep_bytes: stop once the rest is at most this large.
        """
        self._sweep()
        now = time.time()
        for choice in (self.root / CHOICES).glob("*.npz"):
            with suppress(OSError):  # removed meanwhile
                if now - choice.stat().st_mtime >= (FORGOTTEN if keep_bytes else older_than):
                    choice.unlink()
        if with_fetched:
            sweep_fetched(self.root)
        entries: Sequence[CacheItem] = self.kept() if with_fetched else self.entries()
        size = sum(entry.bytes for entry in entries)
        removed: list[CacheItem] = []
        in_use: list[CacheItem] = []
        for entry in reversed(entries):
            if size <= keep_bytes or now - entry.used < older_than:
                break
            with all_unused(entry.held) as free:
                deleted = (now - entry.used >= RECENT if free is None else free) and remove_folder(entry.folder)
            size -= entry.bytes if deleted else 0
            (removed if deleted else in_use).append(entry)
        return Pruned(tuple(removed), tuple(in_use), size)

    def _sweep(self) -> None:
        """Remove damaged entries, and old unfinished folders."""
        for folder in self._entries.iterdir() if self._entries.is_dir() else ():
            if not folder.name.startswith("."):
                with unused(folder / ROWS) as free:
                    if _read(folder) is None and free is not False:
                        remove_folder(folder)
                continue
            with suppress(OSError):  # completed or removed meanwhile
                written = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
                if time.time() - written > ABANDONED:
                    shutil.rmtree(folder, ignore_errors=True)


def list_kept(root: Path | None = None) -> list[CacheItem]:
    """All prepared data and all files that plugins have fetched, the last used first."""
    return DataCache(root).kept()


def prune_cache(
    *, keep_bytes: int | None = None, older_than: float | None = None, all: bool = False, root: Path | None = None
) -> Pruned:
    """Remove prepared data and fetched files, the longest unused first; files in use stay.

    Args:
        keep_bytes: stop once the rest is at most this large.
        older_than: remove only those not used for so many seconds.
        all: remove every one.
        root: of the cache; default: `folders.cache_folder()`.

    Raises:
        ValueError: not exactly one of `keep_bytes`, `older_than` and `all` is given.
    """
    if (keep_bytes is not None) + (older_than is not None) + all != 1:
        raise ValueError("exactly one of keep_bytes, older_than and all says what is removed")
    return DataCache(root).prune(older_than=older_than or 0.0, keep_bytes=keep_bytes or 0, with_fetched=True)


def _sealed(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content)
    return json.dumps({"content": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}).encode()


def _unsealed(path: Path) -> dict[str, Any] | None:
    try:
        sealed = json.loads(path.read_bytes())
        text = sealed["content"]
        if hashlib.sha256(text.encode()).hexdigest() != sealed["sha256"]:
            return None
        content: dict[str, Any] = json.loads(text)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return content


def _read(folder: Path) -> CacheEntry | None:
    """The entry in a folder, None if its manifest is missing or damaged."""
    content = _unsealed(folder / MANIFEST)
    try:
        if content is None or content["key"] != folder.name:
            return None
        return CacheEntry(
            key=content["key"],
            folder=folder,
            bytes=content["bytes"],
            sources=tuple(content["sources"]),
            rows=content["rows"],
            made=content["made"],
            used=(folder / MANIFEST).stat().st_mtime,
            tally=Tally.from_json(content["tally"]),
            notes=tuple((topic, text) for topic, text in content["notes"]),
            portions=tuple((rows, tokens, checksum) for rows, tokens, checksum in content["portions"]),
        )
    except (OSError, KeyError, TypeError, ValueError):  # removed meanwhile, or written by another version
        return None


def _is_whole(folder: Path) -> bool:
    """Whether the file of rows is unchanged. It is hashed only if the file system reports a change; the checksum of
    each portion, compared when it is read, finds other damage."""
    content = _unsealed(folder / MANIFEST)
    path = folder / ROWS
    try:
        now = signature(path)
        if content is None or now[2] != content["bytes"]:
            return False
        if list(now) == content["signature"]:
            return True
        if file_sha256(path) != content["sha256"]:
            return False
    except OSError:
        return False
    if os.access(folder, os.W_OK):
        write_whole(folder / MANIFEST, _sealed({**content, "signature": now}))
    return True


def _damaged(key: str, folder: Path) -> EngineError:
    """The error for rows that have changed since they were written; removes them."""
    if not remove_folder(folder):  # it fails if the file is open here and the platform cannot move open files
        with suppress(OSError):
            (folder / MANIFEST).unlink(missing_ok=True)
    return EngineError(
        f"prepared data {key[:12]} are damaged on disk and were removed",
        action="start the run again; it makes them",
    )
