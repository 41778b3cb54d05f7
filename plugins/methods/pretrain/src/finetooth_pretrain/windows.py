"""Documents to windows: tokenise, separate, cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from finetooth_hooks import Datum, RecipeError
from finetooth_hooks.protocols import Tokenizer
from finetooth_hooks.rendering import text_opening

SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "</s>")
"""What models end a document with, most telling first. A chat model's own end-of-text token usually ends a message."""


def separator_id(tokenizer: Tokenizer, separator: str) -> int:
    """Id of the token that closes a document.

    Args:
        separator: its spelling, or `auto`: the first of `SEPARATORS` the vocabulary has, else the end-of-text token.

    Raises:
        RecipeError: the vocabulary has no such token.
    """
    if separator != "auto":
        id_ = tokenizer.token_id(separator)
        if id_ is None:
            raise RecipeError(
                "method.separator", f"the vocabulary has no token {separator!r}", action="set method.separator: auto"
            )
        return id_
    found = next((id_ for name in SEPARATORS if (id_ := tokenizer.token_id(name)) is not None), tokenizer.eos_id)
    if found is None:
        raise RecipeError(
            "method.separator",
            "the tokenizer has no end-of-text token",
            action="set method.separator to a token of its vocabulary",
        )
    return found


def stream(
    documents: Sequence[tuple[str, str]], tokenizer: Tokenizer, separator: int
) -> tuple[list[int], list[tuple[int, str]]]:
    """All documents as one run of tokens, each closed by the separator.

    A beginning-of-text token stands before each document if the tokenizer puts one before every text.

    Args:
        documents: id and text.
        separator: token id.

    Returns:
        The tokens, and for every document the index of its first token with its id.
    """
    tokens: list[int] = []
    starts: list[tuple[int, str]] = []
    opening = text_opening(tokenizer)
    for id_, text in documents:
        starts.append((len(tokens), id_))
        tokens += [*opening, *tokenizer.encode(text), separator]
    return tokens, starts


def windows(tokens: Sequence[int], starts: Sequence[tuple[int, str]], length: int) -> Iterator[Datum]:
    """Cut into windows of `length` positions.

    A window reads `length` tokens and predicts the one after each, so neighbours share one token: the last a window
    predicts is the first the next one reads. Every token but the very first is predicted exactly once. The last window
    may be shorter.

    Yields:
        Data named after the document in which they begin and the offset in it: `corpus.txt@1024`.
    """
    document = 0
    for begin in range(0, len(tokens) - 1, length):
        while document + 1 < len(starts) and starts[document + 1][0] <= begin:
            document += 1
        first, id_ = starts[document]
        yield Datum.from_tokens(tokens[begin : begin + length + 1], id=f"{id_}@{begin - first}")
