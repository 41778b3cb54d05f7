"""The Granite family."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Family, hookimpl


@hookimpl
def ft_families() -> Iterator[Family]:
    yield Family(
        name="granite",
        build="finetooth_granite.family:Granite",
        summary="Granite 3 (model_type granite) and Granite 4, with Mamba layers (granitemoehybrid)",
        model_types=frozenset({"granite", "granitemoehybrid"}),
    )
