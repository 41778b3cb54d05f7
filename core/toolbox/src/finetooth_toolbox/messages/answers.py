"""Texts for a scalar head: a prompt with an answer, or an answer in steps, the same for methods, rewards and
evaluators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from finetooth_hooks.context import Context
from finetooth_hooks.data.datum import Chunk, Datum, TokenChunk
from finetooth_hooks.data.examples import Conversation, Rendered, RenderedMedium, Side
from finetooth_hooks.errors import DataError, RecipeError
from finetooth_hooks.protocols import Tokenizer
from finetooth_toolbox.messages.media import chunks
from finetooth_toolbox.messages.prompts import closed, encode_document

NO_WORDS = "is empty"


def has_words(side: Side) -> bool:
    """Whether a side has content."""
    if isinstance(side, str):
        return bool(side.strip())
    return any(message.content.strip() or message.tool_calls or message.reasoning for message in side)


def rendered_answer(prompt: Side, answer: Side, context: Context, tools: Sequence[Mapping[str, Any]] = ()) -> Rendered:
    """A prompt with its answer, images and sounds included, for a scalar head, which scores the last token.

    The recipe's renderer renders messages. Plain texts are concatenated, followed by the end-of-text token.
    transformers' classifiers score the last token that is not padding, so padding tokens at the end are left out (a
    model may end texts with its padding token).

    Raises:
        DataError: one side is messages and the other text, or no token is left to score.
    """
    tokenizer = context.tokenizer
    media: tuple[RenderedMedium, ...] = ()
    if isinstance(prompt, str) and isinstance(answer, str):
        tokens = list(encode_document(prompt + answer, tokenizer, context.markup))
        if tokenizer.eos_id is not None and not closed(tokens, tokenizer.eos_id, context.markup):
            tokens.append(tokenizer.eos_id)
    else:
        if isinstance(answer, str) or (isinstance(prompt, str) and prompt):
            raise DataError(
                "", "the prompt and the answer are not both messages or both text", action="write both in one way"
            )
        messages = (*(() if isinstance(prompt, str) else prompt), *answer)
        rendered = context.renderer.render(Conversation(messages, tuple(tools)))
        tokens, media = list(rendered.tokens), rendered.media
    while tokens and tokens[-1] == tokenizer.pad_id:
        tokens.pop()
    if not tokens:
        raise DataError("", "the text has no token to score", action="remove the row")
    return Rendered(tuple(tokens), (0.0,) * len(tokens), media=media)


def scored_at_end(tokens: Sequence[int], **about: Any) -> Rendered:
    """Tokens with weight only at the last position.

    A datum reads all tokens except the last one, and counts positions that predict a token of weight 1. So one more
    token follows, which is not read.

    Args:
        about: fields of `Rendered`.
    """
    return Rendered((*tokens, tokens[-1]), (*(0.0 for _ in tokens), 1.0), **about)


def is_scored_at_end(rendered: Rendered) -> bool:
    """Whether the tokens are from `scored_at_end`: only the last token counts, and it occurs twice."""
    tokens, weights = rendered.tokens, rendered.weights
    return len(tokens) > 1 and tokens[-1] == tokens[-2] and bool(weights[-1]) and not any(weights[:-1])


def text_datum(
    tokens: Sequence[int], counts: Sequence[int] = (), *, id: str = "", media: Sequence[RenderedMedium] = ()
) -> Datum:
    """A datum that reads all tokens, for an engine's `scores` and `values`.

    Args:
        counts: counted positions; default: the last.
        media: among the tokens.

    Raises:
        DataError: an image cannot be read.
    """
    ids = np.asarray(tokens, dtype=np.int64)
    mask = np.zeros(len(ids), dtype=np.bool_)
    mask[list(counts) or [-1]] = True
    read: tuple[Chunk, ...] = (TokenChunk(ids),)
    if media:
        read = Datum.from_tokens((*tokens, tokens[-1]), media=chunks(media, id), id=id).input
    return Datum(read, np.zeros_like(ids), mask=mask, id=id)


def separator_tokens(separator: str, tokenizer: Tokenizer, setting: str) -> tuple[int, ...]:
    """The tokens at the end of a step: one token if the separator is the spelling of one, else those of its text.

    Raises:
        RecipeError: the separator has no tokens.
    """
    known = tokenizer.token_id(separator)
    tokens = (known,) if known is not None else tuple(tokenizer.encode(separator))
    if not tokens:
        raise RecipeError(setting, f"{separator!r} has no tokens", action='set it to "\\n", or to a special token')
    return tokens


def step_tokens(
    prompt: Side, steps: Sequence[str], context: Context, separator: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens of a prompt with an answer in steps, and the position where each step ends: that of the separator's
    last token.

    Prompt, steps and separator are encoded separately, so that the ends are exact. A prompt in messages ends with the
    beginning of an answer. Steps after a plain text prompt follow `data.markup`, like the prompt.

    Raises:
        DataError: a step has no tokens.
    """
    tokenizer, raw = context.tokenizer, isinstance(prompt, str)
    if isinstance(prompt, str):
        tokens = list(encode_document(prompt, tokenizer, context.markup))
    else:
        tokens = list(context.renderer.prompt(prompt))
    ends = []
    for number, step in enumerate(steps, start=1):
        own = tokenizer.encode(step, special=raw and context.markup == "special")
        if not own:
            raise DataError("", f"step {number} {NO_WORDS}", action="remove the step and its label")
        tokens += [*own, *separator]
        ends.append(len(tokens) - 1)
    return tuple(tokens), tuple(ends)
