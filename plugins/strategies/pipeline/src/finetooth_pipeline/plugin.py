"""Pipeline parallelism: some layers at every rank (GPipe: Huang et al., 2019, arXiv:1811.06965)."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Strategy, hookimpl


@hookimpl
def ft_strategies() -> Iterator[Strategy]:
    yield Strategy(
        name="pipeline",
        build="finetooth_pipeline.options:build",
        summary="every rank holds some of the decoder's layers, and micro-batches pass through all ranks",
        capabilities=frozenset({"shards", "islands", "traffic"}),
    )
