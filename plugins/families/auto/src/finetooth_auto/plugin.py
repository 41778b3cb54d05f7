"""The family for every causal language model that no other family knows."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Family, hookimpl


@hookimpl
def ft_families() -> Iterator[Family]:
    yield Family(
        name="auto",
        build="finetooth_auto.builder:build",
        summary="any other causal model that transformers loads; finds the model's modules by inspection",
        default=True,
    )
