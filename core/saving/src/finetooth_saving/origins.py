"""Where weights came from that lie in a folder of their own, merged or in another format: `origin` in its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetooth_hooks.errors import UserError
from finetooth_toolbox.files.manifests import MANIFEST, ManifestProblem, sha256_of
from finetooth_toolbox.files.manifests import read_manifest as manifest_of

from finetooth_saving.artifact import read_manifest
from finetooth_saving.run_folder import ARTIFACT, is_run_folder

RECORD = "record.dsse.json"
"""The record of a version, in a folder that a registry wrote."""


@dataclass(frozen=True)
class Origin:
    """What weights were made of.

    Attributes:
        run: folder of the run; empty: an artifact without one.
        artifact: SHA-256 of the manifest of its artifact, which lists every file; empty: it has none.
        record: of the version that the run was, as a registry wrote it; empty: it came from none.
    """

    run: str
    artifact: str
    record: str = ""

    def folder(self) -> Path | None:
        """The run's folder; None where it is gone, or holds another artifact now."""
        folder = Path(self.run)
        same = self.run and is_run_folder(folder) and origin_of(folder / ARTIFACT).artifact == self.artifact
        return folder if same and self.artifact else None


def origin_of(artifact: Path) -> Origin:
    """What will be made of an artifact comes from there."""
    run, manifest = artifact.absolute().parent, artifact / MANIFEST
    record = run / RECORD
    return Origin(
        str(run) if is_run_folder(run) else "",
        sha256_of(manifest) if manifest.is_file() else "",
        record.read_text(encoding="utf-8") if record.is_file() else "",
    )


def as_written(origin: Origin | None) -> dict[str, Any]:
    """What a manifest says of it; nothing where it is not known."""
    return {} if origin is None else {"origin": asdict(origin)}


def read_origin(folder: Path) -> Origin | None:
    """What a folder's manifest says of the origin of its weights; None where none says it.

    Raises:
        UserError: the manifest was changed.
    """
    try:
        about = read_manifest(manifest_of(folder), str(folder)).get("origin")
    except ManifestProblem:
        return None
    if about is None:
        return None
    texts = [about.get(name) for name in ("run", "artifact", "record")] if isinstance(about, Mapping) else []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{folder / MANIFEST}: origin cannot be read", action="merge or export the run again")
    return Origin(*map(str, texts))
