"""Quantizers of bitsandbytes."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Quantizer, hookimpl

_BUILDERS = "finetooth_bitsandbytes.quantizers"


@hookimpl
def ft_quantizers() -> Iterable[Quantizer]:
    """QLoRA's two formats of 4 bits, and the 8 bits of LLM.int8()."""
    yield Quantizer(
        name="nf4",
        build=f"{_BUILDERS}:build_nf4",
        summary="4 bits by bitsandbytes, with 16 levels for normally distributed weights, as in QLoRA",
        rank=1,  # its levels follow what weights are like: of 4 bits what `quantization: auto` takes
        elsewhere={
            name: {}
            for name in ("4bit", "q4", "q4_k_m", "load_in_4bit", "bnb", "bnb_4bit", "bnb_nf4", "bitsandbytes", "qlora")
        },
    )
    yield Quantizer(
        name="fp4",
        build=f"{_BUILDERS}:build_fp4",
        summary="4-bit floating point by bitsandbytes",
        rank=-1,
    )
    yield Quantizer(
        name="bnb_int8",
        build=f"{_BUILDERS}:build_int8",
        summary="8 bits by bitsandbytes, one scale for each row, as LLM.int8() stores weights",
        rank=-1,  # one scale for a row is coarser than one for each group
        elsewhere={"llm_int8": {}, "bnb_8bit": {}},
    )
