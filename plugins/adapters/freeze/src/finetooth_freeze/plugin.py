"""Adapters that train parts of a model: its top decoder layers, or a few layers in turns."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Adapter, hookimpl


@hookimpl
def ft_adapters() -> Iterable[Adapter]:
    """The adapters `freeze` and `lisa`."""
    yield Adapter(
        name="freeze",
        build="finetooth_freeze.adapter:FreezeAdapter",
        summary="train only the top decoder layers",
        example={"layers": 1},
    )
    yield Adapter(
        name="lisa",
        build="finetooth_freeze.lisa:LisaAdapter",
        summary="train the embedding, the head and a few decoder layers, drawn anew at a fixed interval",
        example={"layers": 1},
    )
