"""Reads the facts of a run from its folder, for the record of a version."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from finetooth_hooks.errors import UserError
from finetooth_saving.artifact import verify_folder
from finetooth_saving.origins import RECORD, read_origin
from finetooth_saving.run_folder import ARTIFACT, PLAN, RECIPE, RESULT, RUN, run_of
from finetooth_saving.runs.recorded import METRICS, read_run
from finetooth_toolbox.files.manifests import MANIFEST, sha256_of
from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]

from finetooth_registry import locking, records
from finetooth_registry.anywhere import AnyRegistry, Version

_KEPT = (RECIPE, PLAN, RESULT, RUN, METRICS)
"""Files of a run stored with its artifact."""
_FROM_MANIFEST = ("base", "base_digest", "base_revision", "model", "data", "plugins", "picks", "environment")


@dataclass(frozen=True)
class RunFiles:
    """A run that can be registered.

    Attributes:
        files: to store, by name in the run folder.
        about: the predicate of the record.
        metrics: of the run.
        failed: why it failed; empty: it did not.
    """

    files: Mapping[str, Path]
    about: Mapping[str, Any]
    metrics: Mapping[str, float]
    failed: str = ""


def read(folder: Path) -> RunFiles:
    """Read a run, and check its artifact against the manifest.

    Raises:
        UserError: it has not ended, or its artifact is damaged.
    """
    result = read_run(folder).result
    if not result:
        raise UserError(f"{folder}: the run has not ended", action="wait for it, or end it with ft resume")
    status, reason = str(result.get("status", "")), str(result.get("reason", ""))
    artifact = folder / ARTIFACT
    manifest = _manifest(artifact)
    if not manifest and status != "failed":
        raise UserError(f"{folder}: the run has no artifact", action="register a run that saved one")
    saved = [*manifest["files"], MANIFEST] if manifest else []
    names = [*(f"{ARTIFACT}/{name}" for name in saved), *(name for name in _KEPT if (folder / name).is_file())]
    files = {name: folder / name for name in names}
    recipe = _recipe(folder / RECIPE)
    about = {name: manifest[name] for name in _FROM_MANIFEST if name in manifest}
    about |= {
        "run": str(result.get("run_id") or folder.name),
        "recipe_sha256": sha256_of(folder / RECIPE),
        "method": _name(recipe.get("method")),
        **data_of(recipe),
    }
    metrics = {name: float(value) for name, value in (result.get("metrics") or {}).items() if math.isfinite(value)}
    failed = (reason or "the run failed") if status == "failed" else ""
    return RunFiles(files, about, metrics, failed)


def data_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's classification of its data, its registered base version, and the runs in between.

    Raises:
        UserError: a run or record of its base cannot be read.
    """
    classification = (recipe.get("data") or {}).get("classification") or {}
    parents: list[dict[str, Any]] = []
    earlier: dict[Path, dict[str, Any]] = {}
    while (ancestor := _trained_over(recipe)) is not None and ancestor not in earlier:
        if isinstance(ancestor, bytes):
            about = records.read(ancestor)["predicate"]
            parents = [{"name": about["name"], "number": about["number"], "statement": records.digest(ancestor)}]
            break
        gone = not (ancestor / RECIPE).is_file()
        recipe = {} if gone else _recipe(ancestor / RECIPE)
        earlier[ancestor] = {
            "run": ancestor.name,
            "recipe_sha256": "" if gone else sha256_of(ancestor / RECIPE),
            "data": _manifest(ancestor / ARTIFACT).get("data") or {},
            "classification": (recipe.get("data") or {}).get("classification") or {},
        }
    return {
        "parents": parents,
        "classification": classification,
        **({"earlier": [*earlier.values()]} if earlier else {}),
    }


def _manifest(artifact: Path) -> Mapping[str, Any]:
    """The manifest of an artifact, after checking the files; empty without an artifact."""
    return verify_folder(artifact) if artifact.is_dir() else {}


def _trained_over(recipe: Mapping[str, Any]) -> Path | bytes | None:
    """The base of a run: the record of a version, or the folder of a run, also for its merged or exported weights; the
    folder may no longer exist. None: a published model."""
    model = _name(recipe.get("model"))
    folder = Path(model)
    if not model:
        return None
    if (origin := read_origin(folder)) is not None:
        gone = Path(f"{origin.run or folder} (not there any more)")
        return origin.record.encode() or origin.folder() or gone
    run = folder if (folder / RECORD).is_file() else run_of(model)
    run = run or (run_of(str(folder.absolute().parent)) if folder.is_dir() else None)
    return run if run is None or not (run / RECORD).is_file() else (run / RECORD).read_bytes()


def register(
    registry: AnyRegistry, model: str, run: Path, signer: CryptoSigner | None, lock: Path | None = None
) -> tuple[Version, str]:
    """Register what a run trained as the next version of a model.

    Args:
        lock: the lock file of the run's environment; None: that of this environment, unless it contradicts the run's
            record.

    Returns:
        The version, and why it has no lock file; empty if it has one.

    Raises:
        UserError: see `read` and `Registry.add`; the given lock file contradicts the run's record.
    """
    made = read(run)
    text, why = _locked(made.about, lock)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / locking.LOCK
        file.write_text(text, encoding="utf-8")
        files = {**made.files, **({} if why else {locking.LOCK: file})}
        return registry.add(model, files, made.about, signer, metrics=made.metrics, failed=made.failed), why


def _locked(about: Mapping[str, Any], lock_file: Path | None) -> tuple[str, str]:
    """A lock file for a run, and its contradictions with the run."""
    if lock_file is None:
        here = locking.installed()
        return locking.text_of(here), locking.misfit(here, about)
    try:
        text = lock_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--lock {lock_file} cannot be read: {error}", action="check the path") from error
    if why := locking.misfit(locking.read(text, str(lock_file)), about, locking.python_of(text)):
        raise UserError(f"--lock {lock_file}: {why}", action="give the lock file of the environment that trained it")
    return text, ""


def _recipe(path: Path) -> dict[str, Any]:
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read: {why}", action="the run folder is damaged") from error
    return recipe if isinstance(recipe, dict) else {}


def _name(pick: Any) -> str:
    return str(pick.get("name", "")) if isinstance(pick, Mapping) else str(pick or "")
