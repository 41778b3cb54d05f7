"""Checkpoints and snapshots on disk, plain or encrypted.

An encrypted folder holds the same files, each encrypted with its own key, and `sealed.json`: the list of files with
their keys, wrapped by a master key. So the list is authenticated as a whole, no file can be removed or moved to another
folder, and a new master key changes only `sealed.json`.

Engines read and write plain folders, which exist only meanwhile, in the scratch folder.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetooth_hooks import UserError

from finetooth_server.encryption import streams
from finetooth_server.encryption.master import SIZE, MasterKeys

SEALED = "sealed.json"
FORMAT = 1
PLAIN = ".plain"
"""Suffix of the hidden name of a plain folder while an encrypted one replaces it."""
KEPT = {"checkpoints": 1, "snapshots": 2}
"""Folders of a server with such folders, and their depth: `checkpoints/ID`, `snapshots/MODEL/NUMBER`."""


@dataclass(frozen=True)
class Sealed:
    """Contents of `sealed.json`, unwrapped.

    Attributes:
        chunk: bytes of content in a chunk.
        files: key and bytes of content of each file by its path in the folder.
    """

    chunk: int
    files: Mapping[str, tuple[bytes, int]]


class Vault:
    """The folders of one server.

    Args:
        root: the server's folder.
        keys: None leaves everything plain.
        scratch: for temporary plain folders, in a subfolder; default: `root`.
    """

    def __init__(self, root: Path, keys: MasterKeys | None = None, scratch: Path | None = None) -> None:
        self.root, self.keys = root, keys
        owner = hashlib.sha256(str(root).encode()).hexdigest()[:16]
        self._scratch = root / "scratch" if scratch is None else scratch / f"finetooth-{owner}"

    @property
    def scratch(self) -> Path:
        """The folder of temporary plain folders; a starting server removes leftovers."""
        return self._scratch

    def check(self) -> None:
        """Check that the given keys can decrypt everything; contents are not read.

        Raises:
            UserError: a key is missing.
        """
        for place in self.places():
            name, key = self._name(place), self.key_of(place)
            if self.keys is None and key is not None:
                raise UserError(f"{name}: it is encrypted", action="give the key with --encryption-key")
            if self.keys is not None and key is None:
                raise UserError(f"{name}: it is not encrypted", action="run `ft encryption seal` first")
            if self.keys is not None and key not in self.keys.by_id:
                raise UserError(
                    f"{name}: it is encrypted with the key {key}, which was not given",
                    action=f"give that key too; given are {', '.join(self.keys.by_id)}",
                )

    def sweep(self) -> None:
        """Remove leftovers of a crash: plain folders, and incomplete ones. A folder that was being encrypted is
        restored."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        for name, depth in KEPT.items():
            for level in range(1, depth + 1):
                for left in sorted((self.root / name).glob("/".join([*"*" * (level - 1), ".*"]))):
                    before = left.with_name(left.name.removeprefix(".").removesuffix(PLAIN))
                    if left.name.endswith(PLAIN) and not before.exists():
                        left.rename(before)
                    else:
                        shutil.rmtree(left, ignore_errors=True)

    def remove(self, folder: Path) -> None:
        """Remove a kept folder, or one with such folders, if it exists. A crash leaves all of it or none: a part would
        look tampered with."""
        removed = folder
        if folder.name[0] != ".":
            removed = folder.with_name(f".{folder.name}.gone")
            shutil.rmtree(removed, ignore_errors=True)
            try:
                folder.rename(removed)
            except OSError:  # it is missing, or the system cannot rename open files
                removed = folder
        shutil.rmtree(removed, ignore_errors=True)

    @contextmanager
    def writing(self, place: Path, *, flush: bool = False) -> Iterator[Path]:
        """An empty folder to write to; afterwards its content is at `place`, whole or not at all.

        Args:
            flush: sync plain files to the disk; encrypted ones always are.

        Raises:
            UserError: it cannot be encrypted.
        """
        place.parent.mkdir(parents=True, exist_ok=True)
        staging = place.parent / f".{place.name}"
        shutil.rmtree(staging, ignore_errors=True)
        try:
            if self.keys is None:
                staging.mkdir()
                yield staging
                if flush:
                    _flush_all(staging)
            else:
                with self._plain() as plain:
                    yield plain
                    self._seal(plain, staging, self._name(place))
            self.remove(place)
            staging.rename(place)
            _flush(place.parent)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise

    @contextmanager
    def reading(self, path: Path, *, links: bool = False) -> Iterator[Path]:
        """A folder, or a part of one, decrypted; it must not be changed.

        Args:
            links: the reader itself refuses links among the files. A folder is never one.

        Raises:
            UserError: its key is missing, it is damaged, it is plain where it must not be, or it holds a link, which
                the server never makes and which may lead anywhere.
        """
        place = self._place(path)
        if place is not None:
            self._check_links(path, files=not links)
        if place is None or (self.keys is None and not (place / SEALED).exists()):
            yield path
            return
        with self._plain() as plain:
            self._open(place, path.relative_to(place).as_posix(), plain)
            yield plain / path.relative_to(place)

    # --- all folders --------------------------------------------------------------------------------------------------

    def places(self) -> list[Path]:
        """Every checkpoint and snapshot."""
        folders = []
        for name, depth in KEPT.items():
            all_ = (self.root / name).glob("/".join("*" * depth))
            folders += [p for p in all_ if p.is_dir() and not any(part[0] == "." for part in p.parts[-depth:])]
        return sorted(folders)

    def key_of(self, place: Path) -> str | None:
        """Id of a folder's master key; None if it is not encrypted."""
        return _read(place, self._name(place))["master"] if (place / SEALED).exists() else None

    def rewrap(self, place: Path) -> bool:
        """Wrap a folder's data keys with the current master key; False if that is done.

        Raises:
            UserError: it is damaged, or its key is missing.
        """
        keys, name = self._keys(), self._name(place)
        if _read(place, name)["master"] == keys.current:
            return False
        _write(place, keys, name, self._sealed(place))
        return True

    def seal(self, place: Path) -> None:
        """Encrypt a plain folder. It must not be in use."""
        staging = place.parent / f".{place.name}"
        shutil.rmtree(staging, ignore_errors=True)
        self._seal(place, staging, self._name(place))
        old = place.with_name(f".{place.name}{PLAIN}")
        place.rename(old)
        staging.rename(place)
        _flush(place.parent)
        shutil.rmtree(old)

    # --- one folder ---------------------------------------------------------------------------------------------------

    def _seal(self, plain: Path, target: Path, name: str) -> None:
        keys = self._keys()
        files: dict[str, tuple[bytes, int]] = {}
        for source in sorted(file for file in plain.rglob("*") if file.is_file()):
            path, key = source.relative_to(plain).as_posix(), secrets.token_bytes(SIZE)
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            with source.open("rb") as reading, (target / path).open("wb") as writing:
                files[path] = key, streams.encrypt(reading, writing, key, path)
                _sync(writing.fileno(), writing.flush)
        target.mkdir(parents=True, exist_ok=True)
        _write(target, keys, name, Sealed(streams.CHUNK, files))

    def _check_links(self, path: Path, *, files: bool) -> None:
        """
        Raises:
            UserError: the folder or one above it is a link, or with `files` one inside it.
        """
        inside = [
            folder for folder in (path, *path.parents) if folder != self.root and folder.is_relative_to(self.root)
        ]
        links = [folder for folder in inside if folder.is_symlink()]
        if files and not links:
            links = [file for file in path.rglob("*") if file.is_symlink()]
        if links:
            name = links[-1].relative_to(self.root).as_posix()
            raise UserError(f"{name}: it is a link, and none is followed", action="restore the folder from a copy")

    def _open(self, place: Path, part: str, plain: Path) -> None:
        """Decrypt the files under `part`."""
        name, sealed = self._name(place), self._sealed(place)
        there = {file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file()}
        there -= {SEALED, f".{SEALED}"}  # the second is being written, or left by a crash
        for path in sorted(there ^ set(sealed.files)):
            what = "is missing" if path in sealed.files else "does not belong to it"
            raise UserError(f"{name}: {path} {what}", action="restore it from a copy")
        (plain / part).mkdir(parents=True, exist_ok=True)
        for path, (key, size) in sealed.files.items():
            if part != "." and not path.startswith(f"{part}/"):
                continue
            (plain / path).parent.mkdir(parents=True, exist_ok=True)
            try:
                with (place / path).open("rb") as reading, (plain / path).open("wb") as writing:
                    written = streams.decrypt(reading, writing, key, path, sealed.chunk)
            except streams.Damaged as error:
                raise UserError(
                    f"{name}: {path} is damaged after {error.chunk * sealed.chunk} bytes",
                    action="restore it from a copy",
                ) from error
            if written != size:
                raise UserError(f"{name}: {path} has {written} bytes, not {size}", action="restore it from a copy")

    def _sealed(self, place: Path) -> Sealed:
        name, keys = self._name(place), self.keys
        if not (place / SEALED).exists():
            raise UserError(
                f"{name}: it is not encrypted, and this server has an encryption key",
                action="it was put there by others, or run `ft encryption seal`",
            )
        header = _read(place, name)
        if keys is None:
            raise UserError(f"{name}: it is encrypted", action="give the key with --encryption-key")
        content = json.loads(keys.unwrap(header["wrapped"], header["master"], name))
        return Sealed(
            content["chunk"],
            {path: (base64.b64decode(entry["key"]), entry["size"]) for path, entry in content["files"].items()},
        )

    @contextmanager
    def _plain(self) -> Iterator[Path]:
        self._scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = self._scratch / secrets.token_hex(8)
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _place(self, path: Path) -> Path | None:
        """The kept folder at a path or above it."""
        if not path.is_relative_to(self.root):
            return None
        parts = path.relative_to(self.root).parts
        depth = KEPT.get(parts[0], 0) if parts else 0
        return self.root.joinpath(*parts[: depth + 1]) if depth and len(parts) > depth else None

    def _name(self, place: Path) -> str:
        return place.relative_to(self.root).as_posix()

    def _keys(self) -> MasterKeys:
        if self.keys is None:
            raise UserError("the server has no encryption key", action="give one with --encryption-key")
        return self.keys


def _read(place: Path, name: str) -> dict[str, Any]:
    try:
        header = json.loads((place / SEALED).read_bytes())
        master, format_ = str(header["master"]), header["format"]
        wrapped = base64.b64decode(header["wrapped"], validate=True)
    except (OSError, ValueError, KeyError, TypeError, binascii.Error) as error:
        raise UserError(f"{name}: {SEALED} cannot be read", action="restore it from a copy") from error
    if format_ != FORMAT:
        raise UserError(f"{name}: {SEALED} has format {format_!r}, known is {FORMAT}", action="update finetooth-server")
    return {"master": master, "wrapped": wrapped}


def _write(place: Path, keys: MasterKeys, name: str, sealed: Sealed) -> None:
    """Write `sealed.json` to a temporary file and rename it into place."""
    files = {path: {"key": base64.b64encode(key).decode(), "size": size} for path, (key, size) in sealed.files.items()}
    content = json.dumps({"chunk": sealed.chunk, "files": files}).encode()
    wrapped = base64.b64encode(keys.wrap(content, name)).decode()
    beside = place / f".{SEALED}"
    with beside.open("w", encoding="utf-8") as file:
        json.dump({"format": FORMAT, "master": keys.current, "wrapped": wrapped}, file)
        _sync(file.fileno(), file.flush)
    beside.rename(place / SEALED)
    _flush(place)


def _sync(number: int, flush: Callable[[], None]) -> None:
    flush()
    os.fsync(number)


def _flush_all(folder: Path) -> None:
    """Sync files in a folder, and their names, to the disk."""
    for place, _, files in os.walk(folder):
        for name in files:
            with (Path(place) / name).open("rb+") as file:
                os.fsync(file.fileno())
        _flush(Path(place))


def _flush(folder: Path) -> None:
    """Sync a folder's names to the disk."""
    if os.name != "posix":
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
