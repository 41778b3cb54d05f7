"""The Qwen family."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Family, hookimpl


@hookimpl
def ft_families() -> Iterator[Family]:
    yield Family(
        name="qwen",
        build="finetooth_qwen.family:build",
        summary="Qwen2, Qwen2.5 and Qwen3 (dense)",
        model_types=frozenset({"qwen2", "qwen3"}),
    )
