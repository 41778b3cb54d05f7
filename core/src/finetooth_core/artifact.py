"""Folders that are complete or absent: written beside their place, flushed, manifest last, then renamed into it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from finetooth_hooks.errors import EngineError, FinetoothError, UserError

MANIFEST = "manifest.json"


def write_folder(target: Path, fill: Callable[[Path], None], about: Mapping[str, Any]) -> Path:
    """Write a folder atomically.

    Args:
        target: where it will be; must not exist yet.
        fill: writes the files into the folder it is given.
        about: goes into the manifest beside the SHA-256 of every file.

    Raises:
        EngineError: the disk is full or not writable; what was at `target` is untouched.
    """
    if target.exists():
        raise EngineError(f"{target} is there already", action="choose another output")
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        fill(beside)
        files = sorted(path for path in beside.rglob("*") if path.is_file())
        manifest = {**about, "files": {path.relative_to(beside).as_posix(): _sha256(path) for path in files}}
        write_json(beside / MANIFEST, manifest)
        for path in (*files, *(path for path in beside.rglob("*") if path.is_dir()), beside):
            _flush(path)
        beside.chmod(0o755)  # mkdtemp makes it private; the artifact is as public as its parent
        beside.rename(target)
        _flush(target.parent)
    except FinetoothError:
        raise
    except Exception as error:  # libraries wrap a full disk in exceptions of their own
        problem = (
            error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
        )
        raise EngineError(
            f"{target} cannot be written: {problem}", action="make room or choose another output"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return target


def verify_folder(folder: Path) -> Mapping[str, Any]:
    """Check every file of a folder against its manifest and return the manifest.

    Raises:
        UserError: no manifest, or a file is missing or differs.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no readable {MANIFEST}", action="it is not a complete folder of a run") from error
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing", action="the folder is damaged; use another checkpoint")
        if _sha256(path) != expected:
            raise UserError(
                f"{path} differs from its SHA-256 in {MANIFEST}", action="the folder is damaged; use another checkpoint"
            )
    return manifest


def write_json(path: Path, content: Any, *, strict: bool = False) -> None:
    """Write JSON beside its place, flush and rename: a reader never sees half of it.

    Args:
        strict: refuse what JSON does not have, in place of writing it as text: for what will be read back.

    Raises:
        TypeError: with `strict`, something is no JSON.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(
        json.dumps(content, indent=2, sort_keys=True, allow_nan=False, default=None if strict else str) + "\n"
    )
    _flush(beside)
    beside.replace(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
