"""Prepared data on disk, by key: found again, checked, listed, pruned.

FT_CACHE/
  entries/KEY/rows.arrow       the rows
  entries/KEY/manifest.json    what they are, written last: without it there is no entry
  entries/.KEY-...             being written; renamed when it is complete
  files/...                    hashes of source files
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetooth_hooks.errors import EngineError
from finetooth_hooks.tally import Tally
from finetooth_hooks.token_rows import TokenRows

from finetooth_core.data.arrow_rows import ArrowPortions, PortionFacts
from finetooth_core.data.file_hashes import FileHashes, file_sha256, signature
from finetooth_core.data.folders import cache_folder, write_whole
from finetooth_core.data.rendering import Note

ROWS = "rows.arrow"
MANIFEST = "manifest.json"
ABANDONED = 24 * 3600
"""Seconds after which what was never completed is removed."""


@dataclass(frozen=True)
class CacheEntry:
    """Prepared data that are kept.

    Attributes:
        key: 64 hexadecimal digits.
        folder: where they lie.
        bytes: on disk.
        sources: the sources as the recipe names them.
        rows: rows read, of which `tally.used` became data.
        made: when, seconds since 1970.
        used: when last.
        tally: what became of the rows.
        notes: what was told while they were prepared.
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
        """The rows, mapped."""
        portions = ArrowPortions(self.folder / ROWS, self.portions, self._damaged)
        return TokenRows(portions, [(rows, tokens) for rows, tokens, _ in self.portions])

    def _damaged(self) -> EngineError:
        _remove(self.folder)
        return EngineError(
            f"prepared data {self.key[:12]} are damaged on disk and were removed",
            action="start the run again, they will be made anew",
        )


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
        """Everything that is kept, last used first."""
        folders = self._entries.iterdir() if self._entries.is_dir() else ()
        found = [_read(folder) for folder in folders if not folder.name.startswith(".")]
        return sorted((entry for entry in found if entry is not None), key=lambda entry: -entry.used)

    def find(self, key: str) -> CacheEntry | None:
        """The entry of a key; one that is damaged is removed and not found."""
        folder = self._entries / key
        if not folder.exists():
            return None
        entry = _read(folder)
        if entry is None or not _is_whole(folder):
            _remove(folder)
            return None
        try:
            entry.data()
        except (OSError, ValueError):  # Arrow's own errors are ValueErrors
            _remove(folder)
            return None
        with suppress(OSError):  # a folder that may only be read
            (folder / MANIFEST).touch()
        return entry

    @contextmanager
    def writing(self, key: str) -> Iterator[Path]:
        """A folder to write `ROWS` into; `keep` makes an entry of it, else it is gone in the end."""
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
        """Make an entry of a folder that `writing` gave."""
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
            # another run has made the same meanwhile
        entry = self.find(key)
        if entry is None:
            raise EngineError(f"prepared data {key[:12]} were damaged as they were written", action="check the disk")
        return entry

    def remove(self, key: str) -> None:
        """Remove an entry; a run that reads it goes on where the platform allows that."""
        _remove(self._entries / key)

    def prune(self, *, unused_for: float = 0.0, keep_bytes: int = 0) -> list[CacheEntry]:
        """Remove entries, those last used longest ago first.

        Args:
            unused_for: only those not used for so many seconds.
            keep_bytes: stop when the rest is no larger.

        Returns:
            What was removed.
        """
        now = time.time()
        entries = self.entries()
        size = sum(entry.bytes for entry in entries)
        removed = []
        for entry in reversed(entries):
            if size <= keep_bytes or now - entry.used < unused_for:
                break
            self.remove(entry.key)
            size -= entry.bytes
            removed.append(entry)
        for folder in self._entries.glob(".*") if self._entries.is_dir() else ():
            if now - folder.stat().st_mtime > ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)
        return removed


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


def _is_whole(folder: Path) -> bool:
    """The rows are what was written. They are hashed only if the file system says that the file changed; what it cannot
    see is found by the checksum of each portion when that is read."""
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


def _remove(folder: Path) -> None:
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
