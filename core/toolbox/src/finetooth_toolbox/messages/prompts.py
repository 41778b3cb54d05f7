"""Tokens of a raw prompt with its completion, the same for methods and evaluators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from finetooth_hooks.data.examples import PromptCompletion, Rendered, Segments
from finetooth_hooks.errors import DataError
from finetooth_hooks.protocols import Tokenizer
from finetooth_toolbox.messages.asked import as_asked
from finetooth_toolbox.messages.markup import token_weights

Markup = Literal["plain", "special"]
"""Meaning of spelled control tokens in text outside of messages: `data.markup`."""


def encode_text(text: str, tokenizer: Tokenizer, markup: Markup = "plain") -> tuple[list[int], list[tuple[int, int]]]:
    """Tokens of a text outside of messages, after the opening of every text, and the half-open character range of each.

    Args:
        markup: `data.markup`; with `special`, the spelling of a control token becomes the token, and a text with a
            beginning-of-text token gets no second one.
    """
    ids, offsets = tokenizer.encode_with_offsets(text, special=markup == "special")
    opening = text_opening(tokenizer)
    if opening and markup == "special" and tuple(ids[:1]) == opening:
        opening = ()
    return [*opening, *ids], [*((0, 0) for _ in opening), *offsets]


def encode_document(text: str, tokenizer: Tokenizer, markup: Markup = "plain") -> tuple[int, ...]:
    """As `encode_text`, but only the tokens."""
    ids = tokenizer.encode(text, special=markup == "special")
    opening = text_opening(tokenizer)
    return tuple(ids) if opening and markup == "special" and tuple(ids[:1]) == opening else (*opening, *ids)


def closed(ids: Sequence[int], end: int, markup: Markup = "plain") -> bool:
    """Whether the tokens of a text already end with a token that the text spells."""
    return markup == "special" and bool(ids) and ids[-1] == end


def render_completion(
    example: PromptCompletion, tokenizer: Tokenizer, *, train_prompt: bool = False, markup: Markup = "plain"
) -> Rendered:
    """`[bos] prompt completion eos`; the completion and the end-of-text token weigh 1.

    The tokens of the prompt come first, as in inference, and the rest follows as in one text. If a tokenizer cannot do
    that, the tokens are those of the one text, and a token with characters of both has weight 0. The beginning-of-text
    token is first if the model was trained with it before every text.

    Args:
        train_prompt: the prompt has weight 1 too; everything is encoded as one text.
        markup: `data.markup`; see `encode_text`. A completion that spells the end-of-text token gets no second one.

    Raises:
        DataError: the tokenizer has no end-of-text token.
    """
    if tokenizer.eos_id is None:
        raise DataError(
            "tokenizer", "it has no end-of-text token for completions", action="use a chat format, or another tokenizer"
        )
    begin = len(example.prompt)
    ids, offsets = encode_text(example.prompt + example.completion, tokenizer, markup)
    trained = [end > start and (train_prompt or start >= begin) for start, end in offsets]
    split = next((i for i, (start, end) in enumerate(offsets) if start >= begin and end > start), len(ids))
    end = () if example.completion and closed(ids, tokenizer.eos_id, markup) else (tokenizer.eos_id,)
    tokens, weights = (*ids, *end), (*map(float, trained), *(float(bool(example.completion)) for _ in end))
    prompt = encode_document(example.prompt, tokenizer, markup)
    if not train_prompt and (row := as_asked(Rendered(tokens, weights), prompt, tokenizer)) is not None:
        tokens, weights, split = row.tokens, row.weights, len(prompt)
    return Rendered(tokens, weights, ((0, split), (split, len(tokens))))


def render_segments(example: Segments, tokenizer: Tokenizer) -> Rendered:
    """The tokens of all pieces as one text; those of trained pieces have weight 1.

    No tokens are added: the text must spell a beginning- or end-of-text token, which becomes the token. A token with
    characters of a trained and an untrained piece has weight 0.
    """
    text = "".join(piece for piece, _ in example.pieces)
    of_characters = [float(trains) for piece, trains in example.pieces for _ in piece]
    ids, offsets = tokenizer.encode_with_offsets(text, special=True)
    weights = tuple(token_weights(offsets, of_characters))
    spans, at, end = [], 0, 0
    for piece, _ in example.pieces:
        end += len(piece)
        until = next((i for i in range(at, len(offsets)) if offsets[i][0] >= end), len(offsets))
        spans.append((at, until))
        at = until
    return Rendered(tuple(ids), weights, tuple(spans))


def text_opening(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The opening of every text: the beginning-of-text token, if the model was trained with it, or empty."""
    return (tokenizer.bos_id,) if tokenizer.adds_bos and tokenizer.bos_id is not None else ()
