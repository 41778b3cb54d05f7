"""The source `acme_source`."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Claim, Source, hookimpl

ENDING = ".acme_source"


def claims(reference: str) -> Claim | None:
    """Says whether a text in `data.train` is for this source; light, since every start may ask."""
    return Claim(2, f"a {ENDING} file") if reference.endswith(ENDING) else None


@hookimpl
def ft_sources() -> Iterator[Source]:
    yield Source(
        name="acme_source",
        build="acme_source.source:build",
        summary=f"{ENDING} files: a prompt, a tab and a completion on each line",
        claims=claims,
        example={"path": "{folder}/rows.acme_source"},
        example_files={"rows.acme_source": "2 + 2\t4\n2 + 3\t5\n"},
    )
