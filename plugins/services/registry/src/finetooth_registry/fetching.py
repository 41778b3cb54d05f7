"""`registry:NAME@production`: a version as a local run folder, verified before anything loads it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from finetooth_hooks.errors import UserError
from finetooth_toolbox.files.cache_folder import cache_folder, remove_folder

from finetooth_registry.anywhere import VARIABLE
from finetooth_registry.remote import open_registry
from finetooth_registry.verifying import Link, verify_folder, verify_record
from finetooth_registry.writing import write_version


def run_folder(reference: str) -> Path:
    """The folder of a version of the registry that FT_REGISTRY names (a folder or a URL), by default `registry`.

    The folder is kept in the cache under the SHA-256 of its record. Each call verifies the record and every file; a
    changed folder is written again.

    Args:
        reference: `NAME`, `NAME@v3` or `NAME@CHANNEL`.

    Raises:
        UserError: the version does not exist, or a check of it fails.
    """
    registry = open_registry(os.environ.get(VARIABLE) or "registry")
    version = registry.version(reference)
    _all_hold(verify_record(registry, version), f"registry:{version.called}")
    folder = cache_folder() / "plugins" / "registry" / version.record / version.called
    trusted = registry.trusted()
    if folder.is_dir() and not all(link.holds for link in verify_folder(folder, trusted)):
        remove_folder(folder)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent) as place:
            made = write_version(registry, version, Path(place) / "version")
            try:
                made.rename(folder)
            except OSError:  # another process was faster
                _all_hold(verify_folder(folder, trusted), str(folder))
    return folder


def _all_hold(links: Iterator[Link], what: str) -> None:
    """
    Raises:
        UserError: names the first check that fails.
    """
    for link in links:
        if not link.holds:
            action = "see ft registry verify; ft registry sign signs a version that you trust"
            raise UserError(f"{what} is not loaded: {link.what}: {link.said}", action=action)
