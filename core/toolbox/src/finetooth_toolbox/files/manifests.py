"""A checkpoint's manifest: the files it lists, and whether a folder holds them. Shared by stores and gates.

`manifest.json` is an object whose `files` holds, by path with forward slashes, the file's SHA-256 in hexadecimal, or
`{"size": BYTES, "sha256": HEXADECIMAL}`; its own `sha256` is that of everything else in it. A manifest comes from
wherever a checkpoint came from, so it is read as if a stranger had written it: paths that lead out of the folder, names
that mean another thing elsewhere, and absurd sizes are refused before anything is opened.
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
"""The file of a checkpoint that says what belongs to it."""
LONGEST = 64 * 2**20
"""Bytes that a manifest has at most."""
LARGEST = 2**50
"""Bytes that a file of a checkpoint has at most."""

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@,-]{0,199}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ManifestProblem(ValueError):
    """What is wrong with a manifest, with a name, or with a folder that should be as its manifest says; one line."""


@dataclass(frozen=True)
class ListedFile:
    """A file as the manifest lists it.

    Attributes:
        sha256: of its content, hexadecimal, lower case.
        size: bytes; None where the manifest does not say.
    """

    sha256: str
    size: int | None = None


def check_name(name: str) -> str:
    """The name of a checkpoint, if it can be one: a single path part of letters, digits and `_ . + = @ , -`, that does
    not begin with a dot or a dash.

    Raises:
        ManifestProblem: it cannot.
    """
    if not is_name(name):
        raise ManifestProblem(f"{name[:80]!r} cannot be the name of a checkpoint (letters, digits and _ . + = @ , -)")
    return name


def is_name(name: str) -> bool:
    """Whether a checkpoint can have this name."""
    return _PART.fullmatch(name) is not None


def listed_files(manifest: bytes) -> dict[str, ListedFile]:
    """The files that a manifest lists, by path; the manifest itself is not among them.

    Args:
        manifest: the content of `manifest.json`.

    Raises:
        ManifestProblem: it is malformed, or cannot be trusted.
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
    """Files of one checkpoint must have plain names, and no two the same place.

    Raises:
        ManifestProblem: names the first that cannot be.
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
    """The content of a folder's manifest, not checked.

    Raises:
        ManifestProblem: it is missing, not a file, or larger than a manifest can be.
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
        ManifestProblem: there is a link, a device or a name that a checkpoint cannot have, or the folder cannot be
            read.
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
    """SHA-256 of a file's content, hexadecimal; the file is read."""
    with path.open("rb") as file:
        before = _identity(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if (hashes := _hashes.get()) is not None and _identity(file.fileno()) == before:
            hashes[before] = digest
    return digest


@contextmanager
def hashes_remembered() -> Iterator[None]:
    """Inside the `with` block, `remembered_sha256` knows what this thread has read. For code that writes a checkpoint:
    no file is read again for each list that names it."""
    token = _hashes.set({})
    try:
        yield
    finally:
        _hashes.reset(token)


def remembered_sha256(path: Path) -> str:
    """As `sha256_of`, but a file that this thread has read since `hashes_remembered` was entered, and that was not
    touched since, is not read again."""
    hashes = _hashes.get()
    known = hashes.get(_identity(path)) if hashes else None
    return known or sha256_of(path)


_Identity = tuple[int, int, int, int, int]
_hashes: ContextVar[dict[_Identity, str] | None] = ContextVar("hashes", default=None)


def _identity(file: Path | int) -> _Identity:
    """Of a file and its content: another one after whatever is written to it."""
    status = os.fstat(file) if isinstance(file, int) else file.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def check_folder(folder: Path, *, more: bool = False, remembered: bool = False) -> dict[str, ListedFile]:
    """Compare every file of a folder with its manifest; returns what the manifest lists.

    Args:
        more: files that are not listed may be there too, such as a model card in an artifact.
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
    """Those of the listed files that are there.

    Raises:
        ManifestProblem: one is a link, lies behind one, or is not a file.
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
    """Compare one file with what the manifest says of it.

    Args:
        remembered: see `remembered_sha256`; else it is read.

    Raises:
        ManifestProblem: it differs, or cannot be read.
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
