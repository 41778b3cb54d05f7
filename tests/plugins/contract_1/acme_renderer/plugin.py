"""The renderer `acme_renderer`."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Renderer, hookimpl


@hookimpl
def ft_renderers() -> Iterator[Renderer]:
    yield Renderer(
        name="acme_renderer",
        build="acme_renderer.renderer:build",
        summary="[role] content, ended by the end token",
    )
