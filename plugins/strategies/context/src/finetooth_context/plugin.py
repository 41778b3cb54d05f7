"""Context parallelism: some positions of every row at each rank (Llama 3, arXiv:2407.21783, section 3.3.2)."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Strategy, hookimpl


@hookimpl
def ft_strategies() -> Iterator[Strategy]:
    yield Strategy(
        name="context",
        build="finetooth_context.options:build",
        summary="ranks compute the same rows together; each takes some of the positions",
        capabilities=frozenset({"shards", "islands", "traffic"}),
    )
