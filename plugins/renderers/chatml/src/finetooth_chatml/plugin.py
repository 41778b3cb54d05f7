"""The ChatML renderer."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Renderer, hookimpl


@hookimpl
def ft_renderers() -> Iterator[Renderer]:
    yield Renderer(
        name="chatml",
        build="finetooth_chatml.renderer:build",
        summary="<|im_start|>role ... <|im_end|>: SmolLM2, Qwen and others",
    )
