"""Fully sharded training: a part of the model at every rank (Zhao et al., 2023, arXiv:2304.11277)."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Strategy, hookimpl


@hookimpl
def ft_strategies() -> Iterator[Strategy]:
    yield Strategy(
        name="fsdp",
        build="finetooth_fsdp.options:build",
        summary="every rank holds a part of the weights, gradients and optimizer state",
        capabilities=frozenset({"shards", "islands", "traffic"}),
    )
