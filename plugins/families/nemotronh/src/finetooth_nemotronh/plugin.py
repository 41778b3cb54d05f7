"""The Nemotron-H family and the markup of Nemotron 3."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Family, Renderer, hookimpl


@hookimpl
def ft_families() -> Iterator[Family]:
    yield Family(
        name="nemotronh",
        build="finetooth_nemotronh.family:build",
        summary="Nemotron-H: Mamba, attention and experts in turns",
        model_types=frozenset({"nemotron_h"}),
    )


@hookimpl
def ft_renderers() -> Iterator[Renderer]:
    yield Renderer(
        name="nemotron3",
        build="finetooth_nemotronh.renderer:build",
        summary="Nemotron 3 Nano, Super and Ultra: the prompt opens the thought or closes it; a tag for each argument",
    )
