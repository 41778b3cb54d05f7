"""The loader `transformers`: folders and hub ids in the layout of the transformers library."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from finetooth_hooks import Claim, Loader, hookimpl

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
MARKS = ("config.json", "artifact/config.json", "adapter_config.json", "artifact/adapter_config.json")


def claims(reference: str) -> Claim | None:
    """Folders that hold a model, and names of the form `org/name` that are nothing on this machine."""
    folder = Path(reference)
    if folder.is_dir():
        mark = next((mark for mark in MARKS if (folder / mark).is_file()), None)
        return None if mark is None else Claim(2, f"a folder with {mark}")
    if not folder.exists() and HUB_ID.fullmatch(reference):
        return Claim(1, "has the form of a hub id")
    return None


@hookimpl
def ft_loaders() -> Iterator[Loader]:
    yield Loader(
        name="transformers",
        build="finetooth_transformers.builder:build",
        summary="a folder with config.json, or a hub id",
        claims=claims,
        frameworks=frozenset({"torch"}),
    )
