"""The Qwen family and its markup."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Family, Renderer, hookimpl


@hookimpl
def ft_families() -> Iterator[Family]:
    yield Family(
        name="qwen",
        build="finetooth_qwen.family:build",
        summary="Qwen2, 2.5 and 3, Qwen3-Next, the text of Qwen3.5; dense and mixtures of experts",
        model_types=frozenset(
            {
                "qwen2",
                "qwen3",
                "qwen3_moe",
                "qwen3_next",
                "qwen3_5",
                "qwen3_5_text",
                "qwen3_5_moe",
                "qwen3_5_moe_text",
            }
        ),
    )


@hookimpl
def ft_renderers() -> Iterator[Renderer]:
    yield Renderer(
        name="qwen",
        build="finetooth_qwen.renderer:build",
        summary="Qwen2 and 2.5: ChatML with tools",
    )
    yield Renderer(
        name="qwen3",
        build="finetooth_qwen.renderer:build_qwen3",
        summary="Qwen3: thinks before it answers, or not; tools",
    )
    yield Renderer(
        name="qwen3_instruct",
        build="finetooth_qwen.renderer:build_qwen3_instruct",
        summary="Qwen3-Instruct-2507: no thinking; tools",
    )
    yield Renderer(
        name="qwen3_5",
        build="finetooth_qwen.qwen3_5:build",
        summary="Qwen3.5 and 3.6: the prompt opens the thought or closes it; calls with a tag for each argument",
    )
