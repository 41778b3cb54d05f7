# ruff: noqa: RUF001  # the bars of these tokens are wide ones
"""The DeepSeek family and its markups."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Family, Renderer, hookimpl

_RENDERERS = (
    ("deepseek_v3", "fenced:build_v3", "<｜User｜> ... <｜Assistant｜> ...: DeepSeek V3 and R1"),
    ("deepseek_v3_1", "hybrid:build", "<｜Assistant｜><think></think> ...: DeepSeek V3.1, with or without thinking"),
    ("deepseek_v3_2", "dsml:build_v3_2", "<｜Assistant｜></think> ...: DeepSeek V3.2; calls in tags of DSML"),
    ("deepseek_v4", "dsml:build_v4", "<｜Assistant｜></think> ...: DeepSeek V4; results in turns of the user"),
    ("deepseek_r1", "fenced:build_r1", "<｜User｜> ... <｜Assistant｜><think> ...: models distilled from DeepSeek R1"),
)
"""Name, builder, summary."""
_MARKS = {"deepseek_v3_2": {"deepseek_v32": ("｜DSML｜",)}, "deepseek_v4": {"deepseek_v4": ("｜DSML｜",)}}
"""By renderer and model type. Models come with an encoder in place of a template, and tools write templates of it."""


@hookimpl
def ft_families() -> Iterator[Family]:
    yield Family(
        name="deepseek",
        build="finetooth_deepseek.family:DeepSeek",
        summary="DeepSeek V2, V3, V3.1 and R1",
        model_types=frozenset({"deepseek_v2", "deepseek_v3"}),
    )


@hookimpl
def ft_renderers() -> Iterator[Renderer]:
    for name, builder, summary in _RENDERERS:
        yield Renderer(name=name, build=f"finetooth_deepseek.{builder}", summary=summary, marks=_MARKS.get(name, {}))
