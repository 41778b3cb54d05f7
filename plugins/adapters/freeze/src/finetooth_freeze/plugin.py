"""Parts of a model train: its top decoder layers, or a few layers in turns."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Adapter, hookimpl


@hookimpl
def ft_adapters() -> Iterable[Adapter]:
    """The adapters `freeze` and `lisa`."""
    yield Adapter(
        name="freeze",
        build="finetooth_freeze.adapter:build",
        summary="train the top decoder layers only",
        example={"layers": 1},
    )
    yield Adapter(
        name="lisa",
        build="finetooth_freeze.lisa:build",
        summary="train embedding, head, and a few decoder layers that are drawn again every so many steps",
        example={"layers": 1},
    )
