"""The Gemma family and the renderers of Gemma 2 and 3, and of Gemma 4."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Family, Renderer, hookimpl


@hookimpl
def ft_families() -> Iterator[Family]:
    yield Family(
        name="gemma",
        build="finetooth_gemma.family:Gemma",
        summary="Gemma 1 to 4: text models, and the text part of those that read images",
        model_types=frozenset({"gemma", "gemma2", "gemma3", "gemma3_text", "gemma4", "gemma4_text"}),
    )


@hookimpl
def ft_renderers() -> Iterator[Renderer]:
    yield Renderer(
        name="gemma",
        build="finetooth_gemma.renderer:build",
        summary="<start_of_turn>user ... <end_of_turn>: Gemma 1 to 3",
    )
    yield Renderer(
        name="gemma4",
        build="finetooth_gemma.gemma4:build",
        summary="<|turn>user ... <turn|>: Gemma 4, with reasoning and tools",
    )
