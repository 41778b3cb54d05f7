"""The origin of merged or converted weights in a separate folder: `origin` in its manifest."""

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
    """The origin of weights.

    Attributes:
        run: folder of the run; empty: an artifact without one.
        artifact: SHA-256 of the manifest of its artifact, which lists every file; empty: the artifact has no manifest.
        record: the record of the registry's version behind the run; empty: it came from no registry.
    """

    run: str
    artifact: str
    record: str = ""

    def folder(self) -> Path | None:
        """The run's folder; None if it is missing or has another artifact now."""
        folder = Path(self.run)
        same = self.run and is_run_folder(folder) and origin_of(folder / ARTIFACT).artifact == self.artifact
        return folder if same and self.artifact else None


def origin_of(artifact: Path) -> Origin:
    """The origin of weights that are made from an artifact."""
    run, manifest = artifact.absolute().parent, artifact / MANIFEST
    record = run / RECORD
    return Origin(
        str(run) if is_run_folder(run) else "",
        sha256_of(manifest) if manifest.is_file() else "",
        record.read_text(encoding="utf-8") if record.is_file() else "",
    )


def as_written(origin: Origin | None) -> dict[str, Any]:
    """An origin as the items of a manifest; empty if unknown."""
    return {} if origin is None else {"origin": asdict(origin)}


def read_origin(folder: Path) -> Origin | None:
    """The origin in a folder's manifest; None if the manifest is missing or has none.

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
