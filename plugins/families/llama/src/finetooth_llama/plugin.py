"""The Llama family and its markups."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Family, Renderer, hookimpl


@hookimpl
def ft_families() -> Iterator[Family]:
    yield Family(
        name="llama",
        build="finetooth_llama.family:build",
        summary="Llama 2 and 3, SmolLM2 and others of model_type llama; SmolLM3",
        model_types=frozenset({"llama", "smollm3"}),
    )


@hookimpl
def ft_renderers() -> Iterator[Renderer]:
    yield Renderer(
        name="llama3",
        build="finetooth_llama.renderer:build",
        summary="<|start_header_id|>role ... <|eot_id|>: Llama 3.x, with the tools of 3.1",
    )
    yield Renderer(
        name="llama2",
        build="finetooth_llama.llama2:build",
        summary="<s>[INST] ... [/INST] ... </s>: Llama 2 chat",
    )
    yield Renderer(
        name="smollm3",
        build="finetooth_llama.smollm3:build",
        summary="SmolLM3: thinks before it answers, or not",
    )
