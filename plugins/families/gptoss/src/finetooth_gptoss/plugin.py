"""The gpt-oss family and its markup."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Family, Renderer, hookimpl


@hookimpl
def ft_families() -> Iterator[Family]:
    yield Family(
        name="gptoss",
        build="finetooth_gptoss.family:GPTOSS",
        summary="gpt-oss",
        model_types=frozenset({"gpt_oss"}),
    )


@hookimpl
def ft_renderers() -> Iterator[Renderer]:
    yield Renderer(
        name="harmony",
        build="finetooth_gptoss.renderer:build",
        summary="<|start|>role<|channel|>final<|message|> ... <|return|>: gpt-oss",
    )
