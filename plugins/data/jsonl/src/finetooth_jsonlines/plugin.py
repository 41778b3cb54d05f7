"""The source `jsonl`: JSON lines, read strictly."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Claim, Source, hookimpl
from finetooth_toolbox.files.packed import claim_file

ENDINGS = tuple(f".{name}{packed}" for name in ("jsonl", "ndjson") for packed in ("", ".gz", ".zst"))


def claims(reference: str) -> Claim | None:
    """Files of JSON lines are its own, by their name."""
    return claim_file(reference, ENDINGS)


@hookimpl
def ft_sources() -> Iterator[Source]:
    yield Source(
        name="jsonl",
        build="finetooth_jsonlines.source:build",
        summary="JSON lines (.jsonl, .ndjson, also .gz and .zst); names every broken line",
        claims=claims,
    )
