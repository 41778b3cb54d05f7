"""Turns documents into windows: tokenises, separates and cuts them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from finetooth_hooks import Conversation, DataError, Datum, Example, PromptCompletion, RecipeError, Rendered, Text
from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import Segments
from finetooth_hooks.data.preparation import PreparedRows, Render
from finetooth_hooks.protocols import Tokenizer
from finetooth_rows.storage.lazy import LazySequence
from finetooth_toolbox.messages.prompts import closed, encode_document
from numpy.typing import NDArray

SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "</s>")
"""Common tokens at the end of a document, the most specific first. A chat model's own end-of-text token usually ends a
message."""


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
    closing = next((id_ for name in SEPARATORS if (id_ := tokenizer.token_id(name)) is not None), tokenizer.eos_id)
    if closing is None:
        raise RecipeError(
            "method.separator",
            "the tokenizer has no end-of-text token",
            action="set method.separator to a token of its vocabulary",
        )
    return closing


def build(options: Mapping[str, Any], context: Context) -> Render:
    """Tokens of a document: a beginning-of-text token if the tokenizer puts one before every text, the text, the
    separator. With `data.markup: special` a text may spell either itself.

    Args:
        options: `separator`, as in `PretrainOptions`.
    """
    tokenizer, markup = context.tokenizer, context.markup
    separator = separator_id(tokenizer, options["separator"])

    def render(example: Example) -> Rendered:
        if not isinstance(example, Text):
            answered = isinstance(example, Conversation | PromptCompletion | Segments)
            raise DataError(
                "",
                f"the row is {example.called}, and method pretrain learns from plain text",
                action=f"set {'method: sft' if answered else 'another method'}, or data.format: text",
            )
        if not example.text:
            raise DataError("", "the text is empty", action="remove the row")
        tokens = encode_document(example.text, tokenizer, markup)
        if not closed(tokens, separator, markup):
            tokens = (*tokens, separator)
        return Rendered(tokens, (1.0,) * len(tokens))

    return render


class Windows(LazySequence[Datum]):
    """All documents laid end to end, cut into windows of `length` positions, each made when it is read.

    A window reads `length` tokens and predicts the one after each, so neighbours share one token: the last predicted
    token of a window is the first input of the next one. Every token except the very first is predicted exactly once.
    The last window may be shorter. The id of a window is the document at its start and the offset in it:
    `corpus.txt@1024`.

    Args:
        isolate: windows mark the beginnings of documents; see `window`.
    """

    noun = "window"

    def __init__(self, documents: PreparedRows, length: int, *, isolate: bool = False) -> None:
        self._documents, self._length, self._isolate = documents, length, isolate
        self._size = max(0, -(-(documents.token_count - 1) // length))

    def __len__(self) -> int:
        return self._size

    @property
    def positions(self) -> NDArray[np.int64]:
        """Positions of each window, (W,)."""
        places = np.full(self._size, self._length, np.int64)
        if self._size:
            places[-1] = self._documents.token_count - 1 - (self._size - 1) * self._length
        return places

    def make(self, place: int) -> Datum:
        begin = place * self._length
        document, offset = self._documents.place(begin)
        end = begin + self._length + 1
        begins = self._documents.begins(begin, end) if self._isolate else None
        return window(self._documents.span(begin, end), begins, f"{document}@{offset}")


def window(tokens: NDArray[np.int64], begins: NDArray[np.int64] | None, id: str) -> Datum:
    """A window that reads `tokens[:-1]` and predicts `tokens[1:]`.

    Args:
        begins: starts of documents in the window; each is then a separate segment with positions from 0. The separator
            belongs to the document before it, and predicts the next document's first token. None for windows in which
            attention crosses documents.
    """
    datum = Datum.from_tokens(tokens, id=id)
    inner = () if begins is None else begins[(begins > 0) & (begins < len(datum))]
    if not len(inner):
        return datum
    parents = np.arange(len(datum), dtype=np.int64) - 1
    parents[inner] = -1
    return replace(datum, parents=parents)
