"""The Llama family and the markup of Llama 3."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Family, Renderer, hookimpl


@hookimpl
def ft_families() -> Iterator[Family]:
    yield Family(
        name="llama",
        build="finetooth_llama.family:build",
        summary="Llama 2 and 3, SmolLM2 and others of model_type llama",
        model_types=frozenset({"llama"}),
    )


@hookimpl
def ft_renderers() -> Iterator[Renderer]:
    yield Renderer(
        name="llama3",
        build="finetooth_llama.renderer:build",
        summary="<|start_header_id|>role ... <|eot_id|>: Llama 3.x",
    )
