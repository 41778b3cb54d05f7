"""The source `text`: plain text files."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from finetooth_hooks import Claim, Source, hookimpl

ENDINGS = (".txt", ".md")
LOOKED_AT = 10_000
"""How many files of a folder are looked at before it is left to others."""


def claims(reference: str) -> Claim | None:
    """Text files are its own by their name, folders if text files are in them."""
    if reference.lower().endswith(ENDINGS):
        return Claim(2, f"a {Path(reference).suffix.lower()} file")
    if not reference:
        return None
    folder = Path(reference)
    if folder.is_dir() and any(path.suffix.lower() in ENDINGS for path in islice(folder.rglob("*"), LOOKED_AT)):
        return Claim(1, "a folder with text files")
    return None


@hookimpl
def ft_sources() -> Iterator[Source]:
    yield Source(
        name="text",
        build="finetooth_text.source:build",
        summary="plain text files (.txt, .md) or a folder of them, one document a file",
        claims=claims,
    )
