"""How `sft` turns an example into tokens; also what a worker process builds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetooth_hooks import Conversation, DataError, Example, PromptCompletion, Rendered
from finetooth_hooks.context import Context
from finetooth_hooks.examples import Segments, Text, TrainOn
from finetooth_hooks.preparation import Render
from finetooth_hooks.rendering import render_completion, render_segments

TRAILING = "ends with a message that is not the assistant's"


def build(options: Mapping[str, Any], context: Context) -> Render:
    """Tokens of an example.

    Args:
        options: `train_on`, as in `SftOptions`.
    """
    train_on: TrainOn = options["train_on"]

    def render(example: Example) -> Rendered:
        if isinstance(example, Conversation):
            rendered = context.renderer.render(example, train_on=train_on)
            return replace(rendered, remarks=(TRAILING,)) if _trails(example) else rendered
        if isinstance(example, PromptCompletion):
            return render_completion(example, context.tokenizer, train_prompt=train_on == "all")
        if isinstance(example, Segments):
            return render_segments(example, context.tokenizer)
        raise _refusal(example)

    return render


def _refusal(example: Example) -> DataError:
    if isinstance(example, Text):
        return DataError(
            "",
            "the row is a plain text, and method sft learns from conversations or prompts with completions",
            action="set method: pretrain, or data.format to the columns that hold prompt and completion",
        )
    return DataError(
        "",
        f"the row is a {type(example).__name__.lower()}, and method sft learns from conversations or prompts with "
        "completions",
        action="set another method, or data.format to the columns that hold prompt and completion",
    )


def _trails(conversation: Conversation) -> bool:
    """Something follows the last answer."""
    roles = [message.role for message in conversation.messages]
    return roles[-1] != "assistant" and "assistant" in roles
