"""The renderer that follows the tokenizer's own chat template."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Renderer, hookimpl


@hookimpl
def ft_renderers() -> Iterator[Renderer]:
    yield Renderer(
        name="jinja",
        build="finetooth_jinja.renderer:build",
        summary="the tokenizer's own chat template; checks for every row which tokens train",
        elsewhere={"tokenizer": {}, "tokenizer_default": {}, "default": {}},
    )
