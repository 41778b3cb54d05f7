"""Full fine-tuning: every parameter of the model trains."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Adapter, hookimpl


@hookimpl
def ft_adapters() -> Iterable[Adapter]:
    """The adapter `full`."""
    yield Adapter(
        name="full",
        build="finetooth_full.adapter:FullAdapter",
        summary="train every parameter of the model",
        elsewhere={"none": {}, "full_finetune": {}, "fft": {}},
    )
