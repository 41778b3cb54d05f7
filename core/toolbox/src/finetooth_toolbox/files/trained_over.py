"""What an adapter's artifact was trained over: its manifest says the base and its revision, its config the base."""

from __future__ import annotations

import json
from pathlib import Path

from finetooth_hooks.errors import UserError
from finetooth_hooks.models import ModelInfo

from finetooth_toolbox.files.manifests import ManifestProblem, read_manifest


def check_base(artifact: Path, base: ModelInfo, *, named: str = "") -> None:
    """See that an adapter was trained over a base: by its revision where both are known, else by its names.

    Args:
        artifact: its folder, also one made elsewhere, without a manifest.
        named: what the user called it; empty: its path.

    Raises:
        UserError: it was trained over another base, or over another revision of it.
    """
    manifest, config = (_said(artifact, name) for name in ("manifest.json", "adapter_config.json"))
    revision = base_revision(artifact)
    names = [str(one) for one in (manifest.get("model"), config.get("base_model_name_or_path")) if one]
    said = f"{named or artifact} was trained over {names[0] if names else 'another base'}"
    if revision and base.revision:
        if revision != base.revision:
            raise UserError(
                f"{said} of revision {revision[:12]}, and {base.reference} of revision {base.revision[:12]} is here",
                action="name that base: what was trained means something else over another one",
            )
        return
    if names and not {*names} & {base.reference, base.published}:
        raise UserError(f"{said}, and {base.reference} is here", action="name the base that it was trained over")


def base_revision(artifact: Path) -> str:
    """Revision of the base that an adapter was trained over, as its manifest says; empty where none does."""
    return str(_said(artifact, "manifest.json").get("base_revision") or "")


def _said(folder: Path, name: str) -> dict[str, object]:
    try:
        text = read_manifest(folder) if name == "manifest.json" else (folder / name).read_bytes()
        found = json.loads(text)
    except (ManifestProblem, OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
