"""Renderers of markups that models of many families share."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Renderer, hookimpl

_RENDERERS = (
    ("chatml", "renderer:build", "<|im_start|>role ... <|im_end|>: SmolLM2 and others"),
    ("hermes", "hermes:build", "ChatML with the tools of Hermes 2 Pro"),
    ("zephyr", "classic:build_zephyr", "<|user|> ... </s>: Zephyr, TinyLlama"),
    ("vicuna", "classic:build_vicuna", "USER: ... ASSISTANT: ...</s>: Vicuna"),
    ("alpaca", "classic:build_alpaca", "### Instruction: ... ### Response: ...: Alpaca and base models"),
    ("minimax_m2", "minimax:build", "]~b]user ... [e~[ ]~b]ai <think> ...: MiniMax-M2 to M2.7"),
)
_MINIMAX = {"minimax_m2": ("]~b]ai", "<minimax:tool_call>")}
"""By which a model of MiniMax shows its markup."""


@hookimpl
def ft_renderers() -> Iterator[Renderer]:
    for name, builder, summary in _RENDERERS:
        yield Renderer(
            name=name,
            build=f"finetooth_chatml.{builder}",
            summary=summary,
            marks=_MINIMAX if name == "minimax_m2" else {},
        )
