"""Folders that are complete or absent: written under a hidden name, flushed, manifest last, then renamed into place."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from finetooth_hooks.errors import EngineError, FinetoothError, UserError
from finetooth_toolbox import blame
from finetooth_toolbox.files.manifests import (
    MANIFEST,
    ManifestProblem,
    check_folder,
    listed_files,
    remembered_sha256,
    sealed,
)
from finetooth_toolbox.files.manifests import read_manifest as manifest_of

from finetooth_saving.names import SCRATCH

DAMAGED = "the folder is damaged; use another checkpoint"

_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_ACTIONS = {
    errno.EFBIG: "raise the limit of the size of files (ulimit -f), or choose another output",
    errno.EACCES: "check the rights of that folder, or choose another output",
    errno.EPERM: "check the rights of that folder, or choose another output",
    errno.EROFS: "choose another output",
}
"""What to do, by the number of the system's error."""


def write_folder(
    target: Path, fill: Callable[[Path], None], about: Mapping[str, Any], *, replace: bool = False
) -> Path:
    """Write a folder atomically.

    Args:
        target: where it will be.
        fill: writes the files into the folder it is given.
        about: goes into the manifest in addition to size and SHA-256 of every file.
        replace: a folder that exists at `target` is replaced; else none may exist yet.

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
    """Write a complete folder under a hidden name next to `target`, every file flushed; returns it.

    Raises:
        EngineError: the disk is full or not writable; nothing is left behind.
    """
    beside: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        fill(beside)
        files = sorted(path for path in beside.rglob("*") if path.is_file())
        listed = {
            path.relative_to(beside).as_posix(): {"sha256": remembered_sha256(path), "size": path.stat().st_size}
            for path in files
        }
        write_json(beside / MANIFEST, sealed({**about, "files": listed}))
        for path in (*files, *(path for path in beside.rglob("*") if path.is_dir()), beside):
            _flush(path)
        beside.chmod(0o755)  # mkdtemp makes it private; the folder is as public as its parent
    except BaseException as error:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)
        if isinstance(error, FinetoothError) or not isinstance(error, Exception | SystemExit):
            raise
        raise _unwritable(target, error) from error  # libraries wrap a full disk in exceptions of their own
    return beside


def check_room(target: Path) -> None:
    """See that a folder can be made next to `target`, before ranks begin what they can only do together.

    Raises:
        EngineError: the disk is full or not writable.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent)).rmdir()
    except OSError as error:
        raise _unwritable(target, error) from error


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


def read_manifest(text: bytes, where: str) -> Mapping[str, Any]:
    """A manifest; its own SHA-256, and the names and sizes in it, are checked. The files are not looked at.

    Raises:
        UserError: the manifest is malformed or was changed, or it names files that no folder of a run has.
    """
    try:
        listed_files(text)
    except ManifestProblem as error:
        raise UserError(f"{where}: {error}", action=DAMAGED) from error
    manifest: dict[str, Any] = json.loads(text)
    if "sha256" not in manifest:
        raise UserError(f"{where}: {MANIFEST} has no SHA-256 of its own", action=DAMAGED)
    return manifest


def verify_folder(folder: Path) -> Mapping[str, Any]:
    """Check every file of a folder against its manifest and return the manifest. Names and sizes are checked before
    anything is read, and links are not followed. The owner of an artifact may add files to it, such as a model card.

    Raises:
        UserError: no manifest, it was changed, or a file is missing, a link, or differs; in a checkpoint also one that
            is not listed.
    """
    try:
        text = manifest_of(folder)
    except ManifestProblem as error:
        raise UserError(f"{folder}: {error}", action="it is not a complete folder of a run") from error
    manifest = read_manifest(text, str(folder))
    try:
        check_folder(folder, more=manifest.get("kind") == "artifact")
    except ManifestProblem as error:
        raise UserError(f"{folder}: {error}", action=DAMAGED) from error
    return manifest


def digest_of(artifact: Path) -> str:
    """SHA-256 that stands for every file of an artifact: the revision of the base that a later run makes of it."""
    return hashlib.sha256((artifact / MANIFEST).read_bytes()).hexdigest()


def write_json(path: Path, content: Any, *, strict: bool = False) -> None:
    """Write JSON to a temporary file, flush and rename: a reader never sees half of it.

    Args:
        strict: refuse values that JSON does not have instead of writing them as text: for what will be read back.

    Raises:
        TypeError: with `strict`, a value has no form in JSON.
    """
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False, default=None if strict else str)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text to a temporary file, flush and rename."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        _flush(beside)
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        error.filename = str(path)  # what the user knows, not the file next to it
        raise


def _unwritable(target: Path, error: Exception | SystemExit) -> EngineError:
    number = error.errno if isinstance(error, OSError) and _is_of(target.parent, error) else None
    if number is None and (match := _OS_ERROR.search(str(error))):  # as libraries written in Rust tell it
        number = int(match[1])
    if number is None:  # not the disk: what was to be written could not be made
        problem, action = blame.problem(error)
        return EngineError(f"{target} cannot be written: {problem}", action=action)
    of_rank = any(part.startswith(SCRATCH) for part in target.parts)
    room = "make room there, or set TMPDIR to another disk" if of_rank else "make room or choose another output"
    action = _ACTIONS.get(number, room)
    return EngineError(f"{target} cannot be written: {os.strerror(number)}", action=action)


def _is_of(folder: Path, error: OSError) -> bool:
    """Whether an error is of what was written into a folder: it names no other file, and no server."""
    named = error.filename if isinstance(error.filename, str) else ""
    return not isinstance(error, ConnectionError | TimeoutError) and (not named or Path(named).is_relative_to(folder))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
