"""The Qwen family and its markup."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Family, Renderer, hookimpl

_RENDERERS = (
    ("qwen", "renderer:build", "Qwen2 and 2.5: ChatML with tools"),
    ("qwen3", "renderer:build_qwen3", "Qwen3: with or without thinking; tools"),
    ("qwen3_instruct", "renderer:build_qwen3_instruct", "Qwen3-Instruct-2507: no thinking; tools"),
    ("qwen3_coder", "coder:build", "Qwen3-Coder: no thinking; calls with a tag for each argument"),
    (
        "qwen3_5",
        "qwen3_5:build",
        "Qwen3.5, 3.6 and 3.8: the prompt opens or closes the thinking; calls have a tag for each argument",
    ),
)
_CODER = ("You have access to the following functions:", "can interact with a computer to solve tasks.")
"""What the chat template of Qwen3-Coder says, since August 2025."""


@hookimpl
def ft_families() -> Iterator[Family]:
    yield Family(
        name="qwen",
        build="finetooth_qwen.family:Qwen",
        summary="Qwen2, 2.5 and 3, Qwen3-Next, the text of Qwen3.5; dense and mixtures of experts",
        model_types=frozenset(
            ("qwen2", "qwen3", "qwen3_moe", "qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text")
        ),
    )


@hookimpl
def ft_renderers() -> Iterator[Renderer]:
    for name, builder, summary in _RENDERERS:
        marks = {"qwen3_moe": _CODER} if name == "qwen3_coder" else {}
        yield Renderer(name=name, build=f"finetooth_qwen.{builder}", summary=summary, marks=marks)
