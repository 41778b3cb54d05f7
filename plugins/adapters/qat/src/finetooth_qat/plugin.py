"""The adapter that trains a model for its later quantisation."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Adapter, hookimpl


@hookimpl
def ft_adapters() -> Iterable[Adapter]:
    """The adapter `qat`."""
    yield Adapter(
        name="qat",
        build="finetooth_qat.adapter:build",
        summary="train every parameter, computing with the weights as they will be quantised",
        elsewhere={"quantization_aware": {}},
    )
