"""The Llama family and its markups."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Family, Renderer, hookimpl

_RENDERERS = (
    ("llama3", "renderer:build", "<|start_header_id|>role ... <|eot_id|>: Llama 3.x, with the tools of 3.1"),
    ("llama2", "llama2:build", "<s>[INST] ... [/INST] ... </s>: Llama 2 chat"),
    ("smollm3", "smollm3:build", "SmolLM3: with or without thinking"),
)
"""Name, builder, summary."""


@hookimpl
def ft_families() -> Iterator[Family]:
    yield Family(
        name="llama",
        build="finetooth_llama.family:Llama",
        summary="Llama 2 and 3, SmolLM2 and others of model_type llama; SmolLM3",
        model_types=frozenset({"llama", "smollm3"}),
    )


@hookimpl
def ft_renderers() -> Iterator[Renderer]:
    for name, builder, summary in _RENDERERS:
        yield Renderer(name=name, build=f"finetooth_llama.{builder}", summary=summary)
