"""What renderers share: pieces of marked-up text to tokens and weights, and which messages train.

A rendered conversation is a sequence of pieces: control tokens and stretches of text. A stretch is encoded as a whole,
as a tokenizer does between two special tokens, and never as special tokens: text that spells `<|im_end|>` stays plain
text. What trains inside a stretch is decided by character offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from finetooth_hooks.examples import Message, TrainOn
from finetooth_hooks.protocols import StretchTokenizer, Tokenizer


@dataclass(frozen=True)
class Control:
    """One control token."""

    id: int
    trained: bool = False


@dataclass(frozen=True)
class Stretch:
    """Text between two control tokens; characters from `trained_from` on train, None is none of them."""

    text: str
    trained_from: int | None = None


Piece = Control | Stretch


def tokenise(pieces: Sequence[Piece], tokenizer: Tokenizer) -> tuple[list[int], list[float]]:
    """Tokens of the pieces and their weights, 1 or 0.

    A token that holds characters from both sides of `trained_from` does not train.
    """
    tokens: list[int] = []
    weights: list[float] = []
    stretches = iter(_encoded([piece for piece in pieces if isinstance(piece, Stretch)], tokenizer))
    for piece in pieces:
        if isinstance(piece, Control):
            tokens.append(piece.id)
            weights.append(float(piece.trained))
        else:
            ids, first = next(stretches)
            tokens += ids
            weights += [0.0] * first + [1.0] * (len(ids) - first)
    return tokens, weights


def _encoded(stretches: Sequence[Stretch], tokenizer: Tokenizer) -> list[tuple[list[int], int]]:
    """Tokens of each stretch, and the index of the first that trains."""
    if hasattr(tokenizer, "encode_from"):  # isinstance would read every property of the tokenizer
        able = cast(StretchTokenizer, tokenizer)
        return able.encode_from([(stretch.text, stretch.trained_from) for stretch in stretches])
    found = []
    for stretch in stretches:
        ids, offsets = tokenizer.encode_with_offsets(stretch.text)
        begin = len(stretch.text) + 1 if stretch.trained_from is None else stretch.trained_from
        found.append((ids, next((i for i, (start, _) in enumerate(offsets) if start >= begin), len(ids))))
    return found


def trained_messages(messages: Sequence[Message], train_on: TrainOn) -> tuple[bool, ...]:
    """Which messages train: those `train_on` chooses, unless a message's own `train` says otherwise."""
    last = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=-1)
    chosen = {
        "assistant": [message.role == "assistant" for message in messages],
        "last": [i == last for i in range(len(messages))],
        "all": [True] * len(messages),
    }[train_on]
    return tuple(
        message.train if message.train is not None else trains for message, trains in zip(messages, chosen, strict=True)
    )
