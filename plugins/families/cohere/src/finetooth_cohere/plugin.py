"""The Cohere family and the renderer cohere2."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Family, Renderer, hookimpl


@hookimpl
def ft_families() -> Iterator[Family]:
    yield Family(
        name="cohere",
        build="finetooth_cohere.family:Cohere",
        summary="Command R and Aya Expanse (model_type cohere), Command R7B and Tiny Aya (cohere2)",
        model_types=frozenset({"cohere", "cohere2"}),
    )


@hookimpl
def ft_renderers() -> Iterator[Renderer]:
    yield Renderer(
        name="cohere2",
        build="finetooth_cohere.renderer:build",
        summary="<|CHATBOT_TOKEN|><|START_RESPONSE|> ... <|END_RESPONSE|>: Command R7B and Tiny Aya",
    )
