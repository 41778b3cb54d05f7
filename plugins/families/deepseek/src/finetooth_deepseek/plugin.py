# ruff: noqa: RUF001  # the bars of these tokens are wide ones
"""The DeepSeek family and its markups."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Family, Renderer, hookimpl


@hookimpl
def ft_families() -> Iterator[Family]:
    yield Family(
        name="deepseek",
        build="finetooth_deepseek.family:build",
        summary="DeepSeek V2, V3, V3.1 and R1",
        model_types=frozenset({"deepseek_v2", "deepseek_v3"}),
    )


@hookimpl
def ft_renderers() -> Iterator[Renderer]:
    yield Renderer(
        name="deepseek_v3",
        build="finetooth_deepseek.fenced:build_v3",
        summary="<｜User｜> ... <｜Assistant｜> ...: DeepSeek V3 and R1",
    )
    yield Renderer(
        name="deepseek_v3_1",
        build="finetooth_deepseek.hybrid:build",
        summary="<｜Assistant｜><think></think> ...: DeepSeek V3.1, thinking or not",
    )
    yield Renderer(
        name="deepseek_r1",
        build="finetooth_deepseek.fenced:build_r1",
        summary="<｜User｜> ... <｜Assistant｜><think> ...: models distilled from DeepSeek R1",
    )
