"""Folders that other tools load as they are."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Exporter, hookimpl


@hookimpl
def ft_exporters() -> Iterator[Exporter]:
    """Three layouts."""
    yield Exporter(
        name="safetensors",
        build="finetooth_folders.whole:build_safetensors",
        summary="the whole model in transformers' layout, an adapter folded in",
    )
    yield Exporter(name="mlx", build="finetooth_folders.whole:build_mlx", summary="the whole model as mlx-lm loads it")
    yield Exporter(
        name="vllm_lora",
        build="finetooth_folders.vllm_lora:build",
        summary="the adapter alone, as vLLM loads it with its base",
    )
