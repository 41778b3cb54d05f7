"""The GLM family and the markups of GLM-4.5 to 4.7 and GLM-5."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Family, Renderer, hookimpl


@hookimpl
def ft_families() -> Iterator[Family]:
    yield Family(
        name="glm",
        build="finetooth_glm.family:GLM",
        summary="GLM-4, GLM-4.5 to 4.7, and GLM-4.7-Flash (model_type glm4_moe_lite)",
        model_types=frozenset({"glm", "glm4", "glm4_moe", "glm4_moe_lite"}),
    )


@hookimpl
def ft_renderers() -> Iterator[Renderer]:
    yield Renderer(
        name="glm4_moe",
        build="finetooth_glm.renderer:build",
        summary="[gMASK]<sop><|user|> ... <|assistant|> ...: GLM-4.5 and 4.6",
    )
    yield Renderer(
        name="glm4_7",
        build="finetooth_glm.renderer:build_4_7",
        marks={"glm4_moe": ("clear_thinking",)},
        summary="[gMASK]<sop><|user|>...<|assistant|><think>...: GLM-4.7 and 4.7-Flash",
    )
    yield Renderer(
        name="glm5",
        build="finetooth_glm.glm5:build",
        marks={"glm_moe_dsa": ("[gMASK]<sop>", "Reasoning Effort: ")},
        summary="[gMASK]<sop><|system|>Reasoning Effort: Max<|user|>...: GLM-5.2 and 5.3",
    )
