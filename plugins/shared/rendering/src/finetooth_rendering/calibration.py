"""Rows of the training data as token ids, for what looks at what a model reads before anything trains."""

from __future__ import annotations

from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import Conversation, PromptCompletion, Text
from finetooth_hooks.errors import RecipeError
from finetooth_toolbox.messages.prompts import encode_document, render_completion


def calibration_rows(context: Context, count: int, setting: str, who: str, *, instead: str) -> list[list[int]]:
    """The first rows of data.train, cut at train.max_length.

    Args:
        count: how many.
        setting: that asked for them, for messages.
        who: looks at them.
        instead: what to choose where there are none of a kind that can be read.

    Raises:
        RecipeError: the recipe has no rows, or they are not texts.
    """
    rows = []
    for _, example in context.examples("train", first=count).rows:
        if isinstance(example, Conversation):
            tokens = context.renderer.render(example).tokens
        elif isinstance(example, Text):
            tokens = tuple(encode_document(example.text, context.tokenizer, context.markup))
        elif isinstance(example, PromptCompletion):
            tokens = render_completion(example, context.tokenizer, markup=context.markup).tokens
        else:
            raise RecipeError(
                setting,
                f"{who} is calibrated with conversations, texts or prompts with completions, and a row is "
                f"{example.called}",
                action=instead,
            )
        if tokens:
            rows.append(list(tokens[: context.train.max_length]))
    if not rows:
        raise RecipeError(setting, f"{who} has no row to be calibrated with", action="give data.train rows with text")
    return rows
