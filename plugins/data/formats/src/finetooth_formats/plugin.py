"""Formats: how a row becomes an example."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Format, hookimpl


@hookimpl
def ft_formats() -> Iterator[Format]:
    yield Format(
        name="chat",
        build="finetooth_formats.chat:build",
        summary="messages with role and content, or ShareGPT conversations",
        rank=10,
    )
    yield Format(
        name="instruction",
        build="finetooth_formats.instruction:build",
        summary="instruction, input and output (Alpaca)",
        rank=20,
    )
    yield Format(
        name="prompt_completion",
        build="finetooth_formats.prompt_completion:build",
        summary="two columns, such as prompt and completion or question and answer",
        rank=30,
    )
    yield Format(name="text", build="finetooth_formats.text:build", summary="documents in the column text", rank=40)
