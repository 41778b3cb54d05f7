"""Reasoning models, which think before they answer."""

from __future__ import annotations

from finetooth_hooks.context import Context

THOUGHT = "<think>", "</think>"
"""Tags around reasoning, by family."""


def thinks(context: Context) -> bool:
    """Whether the prompt opens the reasoning: until its end tag comes, the text is not part of the answer."""
    tokens = context.tokenizer.encode(f"a{THOUGHT[1]}b", special=True)
    return bool(context.renderer.parse(tokens).message.reasoning)
