"""Renderers of markups that models of many families share."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Renderer, hookimpl


@hookimpl
def ft_renderers() -> Iterator[Renderer]:
    yield Renderer(
        name="chatml",
        build="finetooth_chatml.renderer:build",
        summary="<|im_start|>role ... <|im_end|>: SmolLM2 and others",
    )
    yield Renderer(
        name="hermes",
        build="finetooth_chatml.hermes:build",
        summary="ChatML with the tools of Hermes 2 Pro",
    )
    yield Renderer(
        name="zephyr",
        build="finetooth_chatml.classic:build_zephyr",
        summary="<|user|> ... </s>: Zephyr, TinyLlama",
    )
    yield Renderer(
        name="vicuna",
        build="finetooth_chatml.classic:build_vicuna",
        summary="USER: ... ASSISTANT: ...</s>: Vicuna",
    )
    yield Renderer(
        name="alpaca",
        build="finetooth_chatml.classic:build_alpaca",
        summary="### Instruction: ... ### Response: ...: Alpaca and base models",
    )
