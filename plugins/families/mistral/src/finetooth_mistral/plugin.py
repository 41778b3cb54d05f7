"""The Mistral family and its renderer."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Family, Renderer, hookimpl


@hookimpl
def ft_families() -> Iterator[Family]:
    yield Family(
        name="mistral",
        build="finetooth_mistral.family:Mistral",
        summary="Mistral, Mixtral, Ministral and Mistral Small",
        model_types=frozenset({"mistral", "mixtral", "ministral", "ministral3"}),
    )


@hookimpl
def ft_renderers() -> Iterator[Renderer]:
    yield Renderer(
        name="mistral",
        build="finetooth_mistral.renderer:build",
        summary="[INST] ... [/INST]: Mistral v1, v3, v3-tekken (Nemo), v7-tekken, Small 3.2, v13 (thinking)",
    )
