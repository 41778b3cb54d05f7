"""The Nemotron-H family."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Family, hookimpl


@hookimpl
def ft_families() -> Iterator[Family]:
    yield Family(
        name="nemotronh",
        build="finetooth_nemotronh.family:build",
        summary="Nemotron-H: Mamba, attention and experts in turns",
        model_types=frozenset({"nemotron_h"}),
    )
