"""Quantizers and exporters of torchao, and its products in 8-bit floating point."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Exporter, Kernel, Quantizer, Serves, hookimpl

_BUILDERS = "finetooth_torchao.quantizers"


@hookimpl
def ft_quantizers() -> Iterable[Quantizer]:
    """Formats that hardware and vLLM know, below what needs no library where `quantization: auto` chooses."""
    for name, summary in (
        ("torchao_int8", "8 bits by torchao, one scale for each row"),
        ("torchao_int4", "4 bits by torchao, a scale and a zero point for each group"),
        ("torchao_fp8", "8-bit floating point (E4M3) by torchao, one scale for each row"),
        ("mxfp8", "8-bit floating point (E4M3) by torchao, one power-of-two scale for every 32 weights"),
        ("nvfp4", "4-bit floating point (E2M1) by torchao, an 8-bit floating-point scale for every 16 weights"),
    ):
        yield Quantizer(
            name=name,
            build=f"{_BUILDERS}:build_{name.removeprefix('torchao_')}",
            summary=summary,
            rank=-1,
        )


@hookimpl
def ft_exporters() -> Iterable[Exporter]:
    """Folders that transformers loads with torchao."""
    for form, summary in (
        ("int8", "8 bits, one scale for each row"),
        ("fp8", "8-bit floats (E4M3), one scale for each row"),
        ("mxfp8", "8-bit floats (E4M3), one power-of-two scale for every 32"),
        ("mxfp4", "4-bit floats (E2M1), one power-of-two scale for every 32"),
        ("nvfp4", "4-bit floats (E2M1), one 8-bit scale for every 16"),
    ):
        yield Exporter(
            name=f"torchao_{form}",
            build=f"finetooth_torchao.exporter:build_{form}",
            summary=f"the whole model with its linear weights as torchao saves them: {summary}",
        )


@hookimpl
def ft_kernels() -> Iterable[Kernel]:
    """What `train.precision: fp8` multiplies with, where a recipe names it."""
    for name, build, summary in (
        ("torchao", "build", "float8 training, on NVIDIA GPUs from compute capability 8.9 and on ROCm from gfx950"),
        (
            "torchao_mxfp8", "build_mxfp8",
            "MXFP8 (one power-of-two scale for every 32 numbers), on NVIDIA GPUs from compute capability 10.0",
        ),
    ):  # fmt: skip
        yield Kernel(
            name=name,
            build=f"finetooth_torchao.float8:{build}",
            summary=f"torchao's {summary}",
            serves=(
                Serves(
                    operation="fp8_linear", devices=frozenset({"cuda"}), dtypes=frozenset({"bf16", "fp32"}), rank=None
                ),
            ),
        )
