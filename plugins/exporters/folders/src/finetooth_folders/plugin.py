"""Folders that other tools load as they are."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Exporter, hookimpl

COMPRESSED = "vLLM (compressed-tensors)"
PACKED = (
    ("int8", "8 bits", COMPRESSED),
    ("int4", "4 bits", COMPRESSED),
    ("mxfp4", "MXFP4", COMPRESSED),
    ("hqq", "4 bits by half-quadratic quantization", "vLLM and hqq"),
    ("quanto_int8", "8 bits (one scale for each output)", "optimum-quanto"),
    ("quanto_int4", "4 bits (a scale and a shift for each group)", "optimum-quanto"),
)
"""Exporters of weights in fewer bits: name, bits, and what loads them."""


@hookimpl
def ft_exporters() -> Iterator[Exporter]:
    """Whole models, plain and packed, and an adapter alone."""
    yield Exporter(
        name="safetensors",
        build="finetooth_folders.whole:build_safetensors",
        summary="the whole model in transformers' layout, with the adapter merged into it",
    )
    yield Exporter(name="mlx", build="finetooth_folders.whole:build_mlx", summary="the whole model, for mlx-lm")
    for name, bits, loads in PACKED:
        yield Exporter(
            name=name,
            build=f"finetooth_folders.packed:build_{name}",
            summary=f"the whole model with its linear weights in {bits}, for {loads}",
        )
    yield Exporter(
        name="vllm_lora",
        build="finetooth_folders.vllm_lora:VllmLoraExporter",
        summary="the adapter alone, for vLLM, which loads the base separately",
    )
