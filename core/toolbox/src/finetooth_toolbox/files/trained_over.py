"""Checks the base of an adapter's artifact: its manifest has the SHA-256 of every file of the base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from finetooth_hooks.errors import UserError
from finetooth_hooks.models import ModelInfo

from finetooth_toolbox.files.manifests import ManifestProblem, read_manifest

SHOWN = 3
"""Largest number of files in an error."""


def check_base(artifact: Path, base: ModelInfo, *, named: str = "", own: bool = False) -> None:
    """Check that an adapter was trained over a base: by the content of the base's files if both sides are known, in any
    folder; else by its revision, else by its names.

    Args:
        artifact: its folder; a foreign one may lack a manifest.
        named: the user's name for it; empty: its path.
        own: the base comes from the run's own recipe, whose spelling may differ from the artifact's.

    Raises:
        UserError: the adapter was trained over another base, or files of the base have changed since; names them.
        DataError: a file of the base cannot be read.
    """
    manifest, config = (_json_of(artifact, name) for name in ("manifest.json", "adapter_config.json"))
    revision = base_revision(artifact)
    names = [str(name) for name in (manifest.get("model"), config.get("base_model_name_or_path")) if name]
    origin = f"{named or artifact} was trained over {names[0] if names else 'another base'}"
    same_name = own or bool({*names} & {base.reference, base.published})
    recorded = recorded_base(artifact)
    if recorded and base.contents:
        changes = changed_files(recorded, base.contents, partly=bool(revision) and revision == base.revision)
        if not changes:
            return
        listed = ", ".join(changes[:SHOWN]) + (f" and {len(changes) - SHOWN} more" if len(changes) > SHOWN else "")
        if same_name:
            raise UserError(
                f"{origin}, which has changed since: {listed}",
                action="put those files back as they were, or train again over what is there now",
            )
        raise UserError(
            f"{origin}, but the base given here is {base.reference}, and these files differ: {listed}",
            action="name the base that it was trained over",
        )
    if revision and base.revision:
        if revision != base.revision:
            raise UserError(
                f"{origin} of revision {revision[:12]}, but the base given here is revision {base.revision[:12]}",
                action="name that base: the trained weights fit no other",
            )
        return
    if names and not same_name:
        raise UserError(
            f"{origin}, but the base given here is {base.reference}", action="name the base that it was trained over"
        )


def changed_files(before: Mapping[str, str], now: Mapping[str, str], *, partly: bool = False) -> tuple[str, ...]:
    """Differences between the files of two models, one entry per file; empty if the contents are equal.

    Args:
        before, now: SHA-256 by name. Other file names with the same contents are the same model.
        partly: compare only files that both have: a hub's cache has only the downloaded ones.
    """
    if sorted(before.values()) == sorted(now.values()):
        return ()
    changes = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old == new or (partly and None in (old, new)):
            continue
        how = "is missing" if new is None else "is new" if old is None else "has another content"
        changes.append(f"{name} {how}")
    return tuple(changes)


def recorded_base(artifact: Path) -> Mapping[str, str]:
    """SHA-256 of the files of the base that an artifact was trained over, by name; empty if not recorded."""
    base = _json_of(artifact, "manifest.json").get("base")
    return {str(name): str(value) for name, value in base.items()} if isinstance(base, Mapping) else {}


def base_revision(artifact: Path) -> str:
    """Revision of the base that an adapter was trained over, from its manifest; empty if unknown."""
    return str(_json_of(artifact, "manifest.json").get("base_revision") or "")


def _json_of(folder: Path, name: str) -> dict[str, object]:
    try:
        text = read_manifest(folder) if name == "manifest.json" else (folder / name).read_bytes()
        content = json.loads(text)
    except (ManifestProblem, OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
