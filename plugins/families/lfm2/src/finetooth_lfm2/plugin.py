"""The LFM2 family and the renderer lfm2."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Family, Renderer, hookimpl


@hookimpl
def ft_families() -> Iterator[Family]:
    yield Family(
        name="lfm2",
        build="finetooth_lfm2.family:LFM2",
        summary="LFM2 and LFM2.5, with short convolutions (model_type lfm2), and their mixtures of experts (lfm2_moe)",
        model_types=frozenset({"lfm2", "lfm2_moe"}),
    )


@hookimpl
def ft_renderers() -> Iterator[Renderer]:
    yield Renderer(
        name="lfm2",
        build="finetooth_lfm2.renderer:build",
        summary="<|startoftext|><|im_start|>user ... <|im_end|>: LFM2 and LFM2.5",
    )
