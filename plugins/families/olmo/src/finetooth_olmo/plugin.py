"""The OLMo family."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Family, hookimpl


@hookimpl
def ft_families() -> Iterator[Family]:
    yield Family(
        name="olmo",
        build="finetooth_olmo.family:OLMo",
        summary="OLMo 2 and 3",
        model_types=frozenset({"olmo2", "olmo3"}),
    )
