"""Reads the manifest of a checkpoint and compares it with a folder, for stores and gates.

`manifest.json` is an object whose `files` holds, by path with forward slashes, the file's SHA-256 in hexadecimal, or
`{"size": BYTES, "sha256": HEXADECIMAL}`; its own `sha256` covers everything else in it. A checkpoint may come from
anywhere, so its manifest is not trusted: paths out of the folder, names with another meaning on other systems, and
absurd sizes are refused before any file is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetooth_toolbox.text.strict_json import JsonProblem, decode

MANIFEST = "manifest.json"
"""Name of the file that lists the files of a checkpoint."""
LONGEST = 64 * 2**20
"""Largest size of a manifest, in bytes."""
LARGEST = 2**50
"""Largest size of a file in a checkpoint, in bytes."""

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@,-]{0,199}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ManifestProblem(ValueError):
    """The fault of a manifest, of a name, or of a folder that differs from its manifest; one line."""


@dataclass(frozen=True)
class ListedFile:
    """A file in a manifest.

    Attributes:
        sha256: of its content, hexadecimal, lower case.
        size: bytes; None if the manifest has no size.
    """

    sha256: str
    size: int | None = None


def check_name(name: str) -> str:
    """Check the name of a checkpoint and return it: it must be a single path part of letters, digits and `_ . + = @ ,
    -`, and not begin with a dot or a dash.

    Raises:
        ManifestProblem: the name breaks these rules.
    """
    if not is_name(name):
        raise ManifestProblem(f"{name[:80]!r} cannot be the name of a checkpoint (letters, digits and _ . + = @ , -)")
    return name


def is_name(name: str) -> bool:
    """Whether a checkpoint can have this name."""
    return _PART.fullmatch(name) is not None


def listed_files(manifest: bytes) -> dict[str, ListedFile]:
    """The files that a manifest lists, by path; without the manifest itself.

    Args:
        manifest: the content of `manifest.json`.

    Raises:
        ManifestProblem: the manifest is malformed, or has unsafe content.
    """
    if len(manifest) > LONGEST:
        raise ManifestProblem(f"{MANIFEST} has {len(manifest)} bytes, more than a manifest may have")
    try:
        content = decode(manifest.decode("utf-8"))
    except (JsonProblem, UnicodeDecodeError) as error:
        raise ManifestProblem(f"{MANIFEST} cannot be read: {error}") from error
    if isinstance(content, Mapping) and "sha256" in content and content["sha256"] != seal(content):
        raise ManifestProblem(f"{MANIFEST} differs from its own SHA-256")
    files = content.get("files") if isinstance(content, Mapping) else None
    if not isinstance(files, Mapping) or not files:
        raise ManifestProblem(f"{MANIFEST} lists no files")
    check_paths(files)
    return {path: _read_listed_file(path, value) for path, value in files.items()}


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest's content with its own SHA-256 as `sha256`."""
    plain: dict[str, Any] = json.loads(json.dumps(content, default=str))
    return {**plain, "sha256": seal(plain)}


def seal(content: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's content without its own `sha256`, hexadecimal."""
    bare = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(bare, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_paths(paths: Iterable[str]) -> None:
    """Check that the files of a checkpoint have plain names, and that no two have the same path.

    Raises:
        ManifestProblem: names the first wrong path.
    """
    seen: dict[str, str] = {}
    ordered = sorted(paths)
    for path in ordered:
        parts = path.split("/")
        if len(path) > 1000 or not all(_PART.fullmatch(part) for part in parts):
            raise ManifestProblem(f"{path[:80]!r} cannot be the name of a file of a checkpoint")
        if path.lower() == MANIFEST:
            raise ManifestProblem(f"{path} cannot list itself")
        same = seen.setdefault(path.lower(), path)
        if same != path:
            raise ManifestProblem(f"{same} and {path} are one file where case does not count")
    for path in ordered:
        parents = path.lower().split("/")[:-1]
        for depth in range(1, len(parents) + 1):
            if "/".join(parents[:depth]) in seen:
                raise ManifestProblem(f"{path} lies in a folder that is also a file")


def _read_listed_file(path: str, value: Any) -> ListedFile:
    fields = value if isinstance(value, Mapping) else {"sha256": value}
    sha256, size = fields.get("sha256"), fields.get("size")
    if not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
        raise ManifestProblem(f"{MANIFEST} has no SHA-256 of {path}")
    if size is not None and not (isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= LARGEST):
        raise ManifestProblem(f"{MANIFEST} says that {path} has {str(size)[:40]} bytes")
    return ListedFile(sha256, size)


def read_manifest(folder: Path) -> bytes:
    """The unchecked content of a folder's manifest.

    Raises:
        ManifestProblem: the manifest is missing, not a file, or too large.
    """
    path = folder / MANIFEST
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise ManifestProblem(f"{MANIFEST} is not a file")
        if status.st_size > LONGEST:
            raise ManifestProblem(f"{MANIFEST} has {status.st_size} bytes, more than a manifest may have")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ManifestProblem(f"{MANIFEST} is missing") from error
    except OSError as error:
        raise ManifestProblem(f"{MANIFEST} cannot be read: {error.strerror}") from error


def folder_files(folder: Path) -> dict[str, Path]:
    """Every file below a folder by its path with forward slashes, without the manifest.

    Raises:
        ManifestProblem: the folder has a link, a device or a forbidden name, or is unreadable.
    """
    files: dict[str, Path] = {}
    waiting = [folder]
    try:
        while waiting:
            for path in sorted(waiting.pop().iterdir()):
                name, mode = path.relative_to(folder).as_posix(), path.lstat().st_mode
                if stat.S_ISDIR(mode):
                    waiting.append(path)
                elif not stat.S_ISREG(mode):
                    raise ManifestProblem(f"{name} is {'a link' if stat.S_ISLNK(mode) else 'no file'}")
                elif name != MANIFEST:
                    files[name] = path
    except OSError as error:
        raise ManifestProblem(f"{error.filename} cannot be read: {error.strerror}") from error
    check_paths(files)
    return dict(sorted(files.items()))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal; reads the file."""
    with path.open("rb") as file:
        before = _identity(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if (hashes := _hashes.get()) is not None and _identity(file.fileno()) == before:
            hashes[before] = digest
    return digest


@contextmanager
def hashes_remembered() -> Iterator[None]:
    """Inside the `with` block, `remembered_sha256` remembers the files that this thread has read. Code that writes a
    checkpoint then reads each file only once for several lists."""
    token = _hashes.set({})
    try:
        yield
    finally:
        _hashes.reset(token)


def remembered_sha256(path: Path) -> str:
    """As `sha256_of`, but without reading a file again that this thread has read inside `hashes_remembered` and that
    has not changed since."""
    hashes = _hashes.get()
    known = hashes.get(_identity(path)) if hashes else None
    return known or sha256_of(path)


_Identity = tuple[int, int, int, int, int]
_hashes: ContextVar[dict[_Identity, str] | None] = ContextVar("hashes", default=None)


def _identity(file: Path | int) -> _Identity:
    """Identity of a file and its content; any write to the file changes it."""
    status = os.fstat(file) if isinstance(file, int) else file.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def check_folder(folder: Path, *, more: bool = False, remembered: bool = False) -> dict[str, ListedFile]:
    """Compare every file of a folder with its manifest; returns the listed files.

    Args:
        more: further unlisted files are allowed, such as a model card in an artifact.
        remembered: see `remembered_sha256`; else every file is read.

    Raises:
        ManifestProblem: names the first file that is missing, not listed, of another size or of another content.
    """
    listed = listed_files(read_manifest(folder))
    files = _listed_there(folder, listed) if more else folder_files(folder)
    for path in sorted(listed.keys() | files.keys()):
        if path not in files:
            raise ManifestProblem(f"{path} is missing")
        if path not in listed:
            raise ManifestProblem(f"{path} is not in {MANIFEST}")
        check_file(path, files[path], listed[path], remembered=remembered)
    return listed


def _listed_there(folder: Path, listed: Iterable[str]) -> dict[str, Path]:
    """The listed files that exist.

    Raises:
        ManifestProblem: a listed path is a link, is reached through a link, or is not a file.
    """
    files = {}
    for name in listed:
        path = folder
        for part in name.split("/"):
            path = path / part
            if path.is_symlink():
                raise ManifestProblem(f"{name} is a link")
        if path.is_file():
            files[name] = path
        elif path.exists():
            raise ManifestProblem(f"{name} is not a file")
    return files


def check_file(name: str, path: Path, listed: ListedFile, *, remembered: bool = False) -> None:
    """Compare one file with its item in the manifest.

    Args:
        remembered: see `remembered_sha256`; else the file is read.

    Raises:
        ManifestProblem: the file differs, or cannot be read.
    """
    try:
        size = path.stat().st_size
        if listed.size is not None and size != listed.size:
            raise ManifestProblem(f"{name} has {size} bytes instead of {listed.size}")
        if (remembered_sha256 if remembered else sha256_of)(path) != listed.sha256:
            raise ManifestProblem(f"{name} differs from its SHA-256 in {MANIFEST}")
    except OSError as error:
        raise ManifestProblem(f"{name} cannot be read: {error.strerror}") from error


__all__ = [
    "LARGEST",
    "LONGEST",
    "ListedFile",
    "ManifestProblem",
    "check_file",
    "check_folder",
    "check_name",
    "check_paths",
    "folder_files",
    "hashes_remembered",
    "is_name",
    "listed_files",
    "read_manifest",
    "remembered_sha256",
    "seal",
    "sealed",
    "sha256_of",
]
