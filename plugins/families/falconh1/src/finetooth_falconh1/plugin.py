"""The Falcon-H1 family."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Family, hookimpl


@hookimpl
def ft_families() -> Iterator[Family]:
    yield Family(
        name="falconh1",
        build="finetooth_falconh1.family:FalconH1",
        summary="Falcon-H1, whose layers compute attention and Mamba in parallel",
        model_types=frozenset({"falcon_h1"}),
    )
