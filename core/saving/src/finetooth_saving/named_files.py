"""Files that a recipe's settings name besides the model and the data: a template, a reward function, a teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetooth_hooks.errors import DataError
from finetooth_hooks.protocols import RoleRequest
from finetooth_toolbox.files.file_hashes import FileHashes

ELSEWHERE = ("model", "data.train", "data.eval", "plugins", "evaluate", "trackers", "export", "checkpoint", "output")
"""Settings whose files are compared elsewhere, or do not affect weights."""


def named_files(recipe: Mapping[str, Any], roles: Mapping[str, RoleRequest]) -> dict[str, str]:
    """SHA-256 of each file, and of each model other than the policy, by the setting that names it.

    Args:
        recipe: as the user gave it; relative paths start at the current folder.
        roles: models that the engine holds for the method.
    """
    hashes = FileHashes(None)
    models = {f"method.{role}": of.model.digest for role, of in roles.items() if of.model is not None}
    digests = dict(models)
    for setting, path in _paths(recipe, ""):
        try:
            if setting.removesuffix(".name") not in models and path.is_file():  # models have a digest
                digests[setting] = hashes.sha256(path)
        except (OSError, ValueError, DataError):  # an impossible file name, or an unreadable file
            continue
    return digests


def _paths(value: Any, setting: str) -> Iterator[tuple[str, Path]]:
    if setting in ELSEWHERE:
        return
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _paths(inner, f"{setting}.{name}".lstrip("."))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _paths(inner, f"{setting}.{index}")
    elif isinstance(value, str) and ("." in value or "/" in value):  # a single word picks an entry
        yield setting, Path(value)
