"""Folders that are complete or absent: written beside their place, flushed, manifest last, then renamed into it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from finetooth_hooks.checkpoints import MANIFEST
from finetooth_hooks.errors import EngineError, FinetoothError, UserError

DAMAGED = "the folder is damaged; use another checkpoint"


def write_folder(
    target: Path, fill: Callable[[Path], None], about: Mapping[str, Any], *, replace: bool = False
) -> Path:
    """Write a folder atomically.

    Args:
        target: where it will be.
        fill: writes the files into the folder it is given.
        about: goes into the manifest beside size and SHA-256 of every file.
        replace: what is at `target` gives way to it; else it must not exist yet.

    Raises:
        EngineError: the disk is full or not writable; what was at `target` is untouched.
    """
    if target.exists() and not replace:
        raise EngineError(f"{target} is there already", action="choose another output")
    staged = stage_folder(target, fill, about)
    try:
        settle_folder(staged, target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return target


def stage_folder(target: Path, fill: Callable[[Path], None], about: Mapping[str, Any]) -> Path:
    """Write a complete folder under a hidden name beside `target`, every file flushed; returns it.

    Raises:
        EngineError: the disk is full or not writable; nothing is left behind.
    """
    beside: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        fill(beside)
        files = sorted(path for path in beside.rglob("*") if path.is_file())
        names = {path.relative_to(beside).as_posix(): path for path in files}
        content = {
            **about,
            "files": {name: _sha256(path) for name, path in names.items()},
            "bytes": {name: path.stat().st_size for name, path in names.items()},
        }
        write_json(beside / MANIFEST, sealed(content))
        for path in (*files, *(path for path in beside.rglob("*") if path.is_dir()), beside):
            _flush(path)
        beside.chmod(0o755)  # mkdtemp makes it private; the folder is as public as its parent
    except BaseException as error:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)
        if isinstance(error, FinetoothError) or not isinstance(error, Exception):
            raise
        raise _unwritable(target, error) from error  # libraries wrap a full disk in exceptions of their own
    return beside


def settle_folder(staged: Path, target: Path) -> None:
    """Move a staged folder into its place; what is there gives way only once the new one is whole.

    Raises:
        EngineError: it cannot be moved.
    """
    aside = None
    try:
        if target.exists():
            aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
            target.rename(aside / target.name)
        staged.rename(target)
        _flush(target.parent)
    except OSError as error:
        if aside is not None and not target.exists():
            (aside / target.name).rename(target)
        raise _unwritable(target, error) from error
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest with its own SHA-256 as `sha256`, over everything else in it."""
    plain = json.loads(json.dumps(content, default=str))
    return {**plain, "sha256": _seal(plain)}


def read_manifest(text: str | bytes, where: str) -> Mapping[str, Any]:
    """A manifest, its own SHA-256 and the names and sizes in it checked; the files are not looked at.

    Raises:
        UserError: it is no manifest, it was changed, or it names a file outside its folder.
    """
    try:
        manifest: Any = json.loads(text)
        files, sizes = manifest["files"], manifest["bytes"]
        whole = isinstance(files, dict) and isinstance(sizes, dict) and files.keys() == sizes.keys()
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where}: no readable {MANIFEST}", action="it is not a complete folder of a run") from error
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    if not whole or manifest.get("sha256") != _seal(content):
        raise UserError(f"{where}: {MANIFEST} differs from its own SHA-256", action=DAMAGED)
    for name, size in sizes.items():
        path = PurePosixPath(name)
        odd = path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name or not path.parts
        if odd or path.as_posix() != name or not isinstance(size, int) or size < 0 or not isinstance(files[name], str):
            raise UserError(
                f"{where}: {MANIFEST} names the file {name!r}, which no checkpoint has", action="do not use this folder"
            )
    return manifest  # type: ignore[no-any-return]


def verify_folder(folder: Path) -> Mapping[str, Any]:
    """Check every file of a folder against its manifest and return the manifest. Names and sizes are checked before
    anything is read, and links are not followed.

    Raises:
        UserError: no manifest, it was changed, or a file is missing, a link, or differs.
    """
    try:
        text = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise UserError(f"{folder}: no readable {MANIFEST}", action="it is not a complete folder of a run") from error
    manifest = read_manifest(text, str(folder))
    for name, expected in manifest["files"].items():
        path = folder / name
        if _leads_away(folder, name):
            raise UserError(f"{path} is a link", action="do not use this folder; a checkpoint has none")
        if not path.is_file():
            raise UserError(f"{path} is missing", action=DAMAGED)
        size = path.stat().st_size
        if size != manifest["bytes"][name]:
            raise UserError(f"{path} has {size} bytes, {MANIFEST} says {manifest['bytes'][name]}", action=DAMAGED)
        if _sha256(path) != expected:
            raise UserError(f"{path} differs from its SHA-256 in {MANIFEST}", action=DAMAGED)
    return manifest


def write_json(path: Path, content: Any, *, strict: bool = False) -> None:
    """Write JSON beside its place, flush and rename: a reader never sees half of it.

    Args:
        strict: refuse what JSON does not have, in place of writing it as text: for what will be read back.

    Raises:
        TypeError: with `strict`, something is no JSON.
    """
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False, default=None if strict else str)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text beside its place, flush and rename."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    _flush(beside)
    beside.replace(path)


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _leads_away(folder: Path, name: str) -> bool:
    """Whether a part of the path is a link."""
    path = folder
    for part in PurePosixPath(name).parts:
        path = path / part
        if path.is_symlink():
            return True
    return False


def _unwritable(target: Path, error: Exception) -> EngineError:
    said = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
    return EngineError(f"{target} cannot be written: {said}", action="make room or choose another output")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
