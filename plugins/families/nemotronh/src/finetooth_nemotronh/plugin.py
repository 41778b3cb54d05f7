"""The Nemotron-H family and the markup of Nemotron 3."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Family, Renderer, hookimpl


@hookimpl
def ft_families() -> Iterator[Family]:
    yield Family(
        name="nemotronh",
        build="finetooth_nemotronh.family:NemotronH",
        summary="Nemotron-H, whose layers are Mamba, attention or experts",
        model_types=frozenset({"nemotron_h"}),
    )


@hookimpl
def ft_renderers() -> Iterator[Renderer]:
    yield Renderer(
        name="nemotron3",
        build="finetooth_nemotronh.renderer:build",
        summary="Nemotron 3 Nano, Super and Ultra: the prompt opens or closes the thinking; one tag for each argument",
    )
