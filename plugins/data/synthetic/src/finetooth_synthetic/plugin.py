"""The source `synthetic`: rows that are drawn."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Source, hookimpl


@hookimpl
def ft_sources() -> Iterator[Source]:
    yield Source(
        name="synthetic",
        build="finetooth_synthetic.source:build",
        summary="random words, with a given number of tokens in each row; for benchmarks and tests",
        example={"rows": 8, "length": 16},
    )
