"""The source `jsonl`: JSON lines, read strictly."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Claim, Source, hookimpl

ENDINGS = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")


def claims(reference: str) -> Claim | None:
    """Files of JSON lines are its own, by their name."""
    ending = next((ending for ending in reversed(ENDINGS) if reference.lower().endswith(ending)), None)
    return None if ending is None else Claim(2, f"a {ending} file")


@hookimpl
def ft_sources() -> Iterator[Source]:
    yield Source(
        name="jsonl",
        build="finetooth_jsonlines.source:build",
        summary="JSON lines (.jsonl, .ndjson, .gz); every broken line is named",
        claims=claims,
    )
