"""Models that think aloud before they answer."""

from __future__ import annotations

from finetooth_hooks.context import Context

THOUGHT = "<think>", "</think>"
"""What families write around what they think aloud."""


def thinks(context: Context) -> bool:
    """The renderer reads what comes before the end of a thought as one, whose begin is in the prompt: until that end
    comes, nothing is known to be the answer."""
    tokens = context.tokenizer.encode(f"a{THOUGHT[1]}b", special=True)
    return bool(context.renderer.parse(tokens).message.reasoning)
