"""The source `text`: plain text files."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from finetooth_hooks import Claim, Source, hookimpl
from finetooth_toolbox.files.packed import claim_file

ENDINGS = tuple(f".{name}{packed}" for name in ("txt", "md") for packed in ("", ".gz", ".zst"))
DOCUMENTS = (".pdf", ".docx", ".odt")
"""Endings of documents; `finetooth-text[documents]` reads the first two."""
READ = (*ENDINGS, *DOCUMENTS)
LOOKED_AT = 10_000
"""How many files of a folder are looked at before it is left to others."""


def claims(reference: str) -> Claim | None:
    """Text files are its own by their name, folders if text files are in them."""
    claim = claim_file(reference, READ)
    if claim is not None or not reference or "://" in reference:
        return claim
    folder = Path(reference)
    if folder.is_dir() and any(path.name.lower().endswith(READ) for path in islice(folder.rglob("*"), LOOKED_AT)):
        return Claim(1, "a folder with text files")
    return None


@hookimpl
def ft_sources() -> Iterator[Source]:
    yield Source(
        name="text",
        build="finetooth_text.source:build",
        summary="text (.txt, .md, also .gz, .zst), PDF, Word, OpenDocument, or a folder; each file is a document",
        claims=claims,
    )
