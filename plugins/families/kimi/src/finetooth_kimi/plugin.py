"""The Kimi family and the renderer kimi_k2."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Family, Renderer, hookimpl


@hookimpl
def ft_families() -> Iterator[Family]:
    yield Family(
        name="kimi",
        build="finetooth_kimi.family:Kimi",
        summary="Kimi K2 (model_type kimi_k2)",
        model_types=frozenset({"kimi_k2"}),
    )


@hookimpl
def ft_renderers() -> Iterator[Renderer]:
    yield Renderer(
        name="kimi_k2",
        build="finetooth_kimi.renderer:build",
        summary="<|im_user|>user<|im_middle|> ... <|im_end|>: Kimi K2, K2 Thinking, K2.5 and Moonlight",
    )
