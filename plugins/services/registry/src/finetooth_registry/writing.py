"""Writes a version's files as a run folder."""

from __future__ import annotations

from pathlib import Path

from finetooth_hooks.errors import UserError
from finetooth_saving.origins import RECORD

from finetooth_registry import records
from finetooth_registry.anywhere import AnyRegistry, Version, files_of
from finetooth_registry.verifying import PARENTS, ancestors


def write_version(registry: AnyRegistry, version: Version, output: Path) -> Path:
    """Write the files of a version, each checked, its record and those of its parents.

    Args:
        output: must not exist.

    Returns:
        The folder; every command takes it as a run.

    Raises:
        UserError: the folder exists, or a file of the registry was changed.
    """
    if output.exists():
        raise UserError(f"{output} exists", action="choose another folder")
    record = registry.record(version)
    for name, sha256 in files_of(records.read(record)).items():
        target = output / name
        target.parent.mkdir(parents=True, exist_ok=True)
        registry.blobs.copy(sha256, target)
    output.mkdir(parents=True, exist_ok=True)
    (output / RECORD).write_bytes(record)
    earlier = ancestors(records.read(record), lambda called: registry.record(registry.version(called)))
    for called, (envelope, _) in earlier.items():
        if envelope is not None:
            (output / PARENTS).mkdir(exist_ok=True)
            (output / PARENTS / f"{called}.dsse.json").write_bytes(envelope)
    return output
