"""Data-parallel training: the model whole at every rank, gradients summed (Li et al., 2020, arXiv:2006.15704)."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Strategy, hookimpl


@hookimpl
def ft_strategies() -> Iterator[Strategy]:
    yield Strategy(
        name="ddp",
        build="finetooth_ddp.options:build",
        summary="every rank holds the whole model and trains its share of the rows",
        default=True,
        capabilities=frozenset({"traffic"}),
    )
