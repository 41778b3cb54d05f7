"""The source `webdataset`: tar shards."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Claim, Source, hookimpl
from finetooth_toolbox.files.packed import claim_file

ENDINGS = (".tar", ".tar.gz", ".tar.zst")


def claims(reference: str) -> Claim | None:
    """Tar files are its own by their name, and patterns of them."""
    return claim_file(reference, ENDINGS)


@hookimpl
def ft_sources() -> Iterator[Source]:
    yield Source(
        name="webdataset",
        build="finetooth_webdataset.source:build",
        summary="tar shards (.tar, .tar.gz, .tar.zst; shard-{000..003}.tar), one row for each key",
        claims=claims,
    )
