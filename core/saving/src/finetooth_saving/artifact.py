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
"""The next action, by the number of the system's error."""


def write_folder(
    target: Path, fill: Callable[[Path], None], about: Mapping[str, Any], *, replace: bool = False
) -> Path:
    """Write a folder atomically.

    Args:
        target: its final path.
        fill: writes the files into the given folder.
        about: goes into the manifest in addition to size and SHA-256 of every file.
        replace: an existing folder at `target` is replaced; else none may exist.

    Raises:
        EngineError: the disk is full or not writable; an existing `target` is unchanged.
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
        EngineError: the disk is full or not writable; no files remain.
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
        raise _unwritable(target, error) from error  # libraries wrap the error of a full disk in their own exceptions
    return beside


def check_room(target: Path) -> None:
    """Check that a folder can be made next to `target`, before ranks begin work that they can only do together.

    Raises:
        EngineError: the disk is full or not writable.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent)).rmdir()
    except OSError as error:
        raise _unwritable(target, error) from error


def settle_folder(staged: Path, target: Path) -> None:
    """Move a staged folder to its final path, and only then remove an existing folder there.

    Raises:
        EngineError: the folder cannot be moved.
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
    """Read a manifest and check its own SHA-256, and the names and sizes in it, but not the files.

    Raises:
        UserError: the manifest is malformed or was changed, or it has file names that are invalid in a folder of a run.
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
    """SHA-256 over every file of an artifact: its revision as the base of a later run."""
    return hashlib.sha256((artifact / MANIFEST).read_bytes()).hexdigest()


def write_json(path: Path, content: Any, *, strict: bool = False) -> None:
    """Write JSON to a temporary file, flush and rename: a reader never sees a partial file.

    Args:
        strict: refuse values that JSON cannot represent, instead of writing them as text; for files that are read back.

    Raises:
        TypeError: with `strict`, JSON cannot represent a value.
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
        error.filename = str(path)  # the path that the user knows, not the temporary file
        raise


def _unwritable(target: Path, error: Exception | SystemExit) -> EngineError:
    number = error.errno if isinstance(error, OSError) and _is_of(target.parent, error) else None
    if number is None and (match := _OS_ERROR.search(str(error))):  # as in messages of libraries written in Rust
        number = int(match[1])
    if number is None:  # not an error of the disk: making the content failed
        problem, action = blame.problem(error)
        return EngineError(f"{target} cannot be written: {problem}", action=action)
    of_rank = any(part.startswith(SCRATCH) for part in target.parts)
    room = "make room there, or set TMPDIR to another disk" if of_rank else "make room or choose another output"
    action = _ACTIONS.get(number, room)
    return EngineError(f"{target} cannot be written: {os.strerror(number)}", action=action)


def _is_of(folder: Path, error: OSError) -> bool:
    """Whether an error is about writing into a folder: it names neither another file nor a server."""
    named = error.filename if isinstance(error.filename, str) else ""
    return not isinstance(error, ConnectionError | TimeoutError) and (not named or Path(named).is_relative_to(folder))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
