"""Quantizers of torchao."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Quantizer, hookimpl

_BUILDERS = "finetooth_torchao.quantizers"


@hookimpl
def ft_quantizers() -> Iterable[Quantizer]:
    """Formats that hardware and vLLM know, below what needs no library where `quantization: auto` chooses."""
    for name, summary in (
        ("torchao_int8", "8 bits by torchao, a scale a row"),
        ("torchao_int4", "4 bits by torchao, a scale and a zero for each group"),
        ("torchao_fp8", "8-bit floating point (E4M3) by torchao, a scale a row"),
        ("mxfp8", "8-bit floating point (E4M3) by torchao, a power of two for every 32 weights"),
        ("nvfp4", "4-bit floating point (E2M1) by torchao, an 8-bit floating-point scale for every 16 weights"),
    ):
        yield Quantizer(
            name=name,
            build=f"{_BUILDERS}:build_{name.removeprefix('torchao_')}",
            summary=summary,
            rank=-1,
        )
