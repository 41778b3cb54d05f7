"""Freeze: the top decoder layers train, everything below stays as it was."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Adapter, hookimpl


@hookimpl
def ft_adapters() -> Iterable[Adapter]:
    """The adapter `freeze`."""
    yield Adapter(
        name="freeze",
        build="finetooth_freeze.adapter:build",
        summary="train the top decoder layers only",
        example={"layers": 1},
    )
