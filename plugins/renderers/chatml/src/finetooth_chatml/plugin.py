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
)
_OPENED = "the prompt opens a think block, and an answer without reasoning has none, as in the models' own template"


@hookimpl
def ft_renderers() -> Iterator[Renderer]:
    for name, builder, summary in _RENDERERS:
        yield Renderer(name=name, build=f"finetooth_chatml.{builder}", summary=summary)
    yield Renderer(
        name="minimax_m2",
        build="finetooth_chatml.minimax:build",
        summary="]~b]user ... [e~[ ]~b]ai <think> ...: MiniMax-M2 to M2.7",
        marks={"minimax_m2": ("]~b]ai", "<minimax:tool_call>")},
        expected_failures={"prompt_is_a_prefix": _OPENED, "parse_reads_back": _OPENED},
    )
