"""Folders that other tools load as they are."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Exporter, hookimpl


@hookimpl
def ft_exporters() -> Iterator[Exporter]:
    """Whole models, plain and packed, and an adapter alone."""
    yield Exporter(
        name="safetensors",
        build="finetooth_folders.whole:build_safetensors",
        summary="the whole model in transformers' layout, an adapter folded in",
    )
    yield Exporter(name="mlx", build="finetooth_folders.whole:build_mlx", summary="the whole model as mlx-lm loads it")
    for name, summary in (("int8", "8 bits"), ("int4", "4 bits"), ("mxfp4", "MXFP4")):
        yield Exporter(
            name=name,
            build=f"finetooth_folders.packed:build_{name}",
            summary=f"the whole model, its linear weights rounded to {summary}, as vLLM loads compressed-tensors",
        )
    yield Exporter(
        name="vllm_lora",
        build="finetooth_folders.vllm_lora:build",
        summary="the adapter alone, as vLLM loads it with its base",
    )
