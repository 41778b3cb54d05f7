"""Tokens of the question that an example asks; also what a worker process builds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetooth_hooks import Conversation, Example, PromptCompletion, Rendered
from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import Task
from finetooth_hooks.data.preparation import Render
from finetooth_toolbox.messages.prompts import encode_document


def build(options: Mapping[str, Any], context: Context) -> Render:
    """A raw prompt as it stands, a conversation up to its last answer, a prompt without an answer as a whole; no tokens
    for a row without a question.

    Args:
        options: none.
    """
    tokenizer, markup = context.tokenizer, context.markup

    def render(example: Example) -> Rendered:
        tokens: tuple[int, ...] = ()
        if isinstance(example, PromptCompletion):
            tokens = encode_document(example.prompt, tokenizer, markup)
        elif isinstance(example, Conversation) and asks(example):
            tokens = tuple(context.renderer.prompt(example.messages[:-1], example.tools))
        elif isinstance(example, Task) and example.prompt:
            prompt = example.prompt
            tokens = (
                encode_document(prompt, tokenizer, markup)
                if isinstance(prompt, str)
                else tuple(context.renderer.prompt(prompt, example.tools))
            )
        return Rendered(tokens, (0.0,) * len(tokens))

    return render


def asks(conversation: Conversation) -> bool:
    """It ends with an assistant's message, and something stands before that."""
    *before, answer = conversation.messages
    return bool(before) and answer.role == "assistant" and bool(answer.content.strip())
