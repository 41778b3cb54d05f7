"""Quantizers in plain torch: what they store is read on every device that torch knows."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Quantizer, hookimpl

_BUILDERS = "finetooth_portable.quantizers"


@hookimpl
def ft_quantizers() -> Iterable[Quantizer]:
    """Four formats."""
    yield Quantizer(
        name="int8",
        build=f"{_BUILDERS}:build_int8",
        summary="8 bits a weight, a scale for each group",
        elsewhere={"8bit": {}, "load_in_8bit": {}},
    )
    yield Quantizer(
        name="int4",
        build=f"{_BUILDERS}:build_int4",
        summary="4 bits a weight, two to a byte, a scale for each group",
    )
    yield Quantizer(
        name="hqq",
        build=f"{_BUILDERS}:build_hqq",
        summary="4 bits a weight like int4, with a minimum chosen to tolerate outliers (half-quadratic quantization)",
    )
    yield Quantizer(
        name="mxfp4",
        build=f"{_BUILDERS}:build_mxfp4",
        summary="4-bit floating point (E2M1), one power-of-two scale for every 32 weights",
        elsewhere={"fp4_e2m1": {}, "e2m1": {}},
    )
