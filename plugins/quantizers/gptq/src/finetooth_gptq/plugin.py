"""The quantizer `gptq`: what it stores is read on every device that torch knows."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Exporter, Quantizer, hookimpl


@hookimpl
def ft_quantizers() -> Iterable[Quantizer]:
    """GPTQ."""
    yield Quantizer(
        name="gptq",
        build="finetooth_gptq.quantizer:Gptq",
        summary="4 or 8 bits a weight, rounded so that the layers' outputs change least on rows of the data",
    )


@hookimpl
def ft_exporters() -> Iterable[Exporter]:
    """What others load as GPTQ and AWQ."""
    yield Exporter(
        name="gptq",
        build="finetooth_gptq.exporter:build",
        summary="the whole model in 4 or 8 bits by GPTQ, for vLLM and gptqmodel",
    )
    yield Exporter(
        name="awq",
        build="finetooth_gptq.awq:build",
        summary="the whole model in 4 bits by AWQ, for vLLM and mlx-lm",
    )
