"""The Phi family and the renderers phi3 and phi4."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Family, Renderer, hookimpl


@hookimpl
def ft_families() -> Iterator[Family]:
    yield Family(
        name="phi",
        build="finetooth_phi.family:Phi",
        summary="Phi-1 to Phi-2 (model_type phi), Phi-3, Phi-3.5 and Phi-4 (phi3)",
        model_types=frozenset({"phi", "phi3"}),
    )


@hookimpl
def ft_renderers() -> Iterator[Renderer]:
    yield Renderer(
        name="phi3",
        build="finetooth_phi.phi3:build",
        summary="<|user|> ... <|end|>: Phi-3 and Phi-3.5",
    )
    yield Renderer(
        name="phi4",
        build="finetooth_phi.phi4:build",
        summary="<|im_start|>user<|im_sep|> ... <|im_end|>: Phi-4 and Phi-4-reasoning",
    )
