"""Code that renderers share: turns pieces of marked-up text into tokens and weights, and decides which messages train.

A rendered conversation is a sequence of pieces: control tokens and stretches of text. A stretch is encoded as a whole,
as a tokenizer does between two special tokens, and never as special tokens: text that spells `<|im_end|>` stays plain
text. Character offsets decide which tokens of a stretch train. `finetooth_rendering.turns` writes the pieces of a
family.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from finetooth_hooks.data.examples import Conversation, Example, Message, Segments, TrainOn, Weighted
from finetooth_hooks.protocols import Tokenizer


class Control(NamedTuple):
    """One control token."""

    id: int
    weight: float = 0.0


class Stretch(NamedTuple):
    """Text between two control tokens.

    Attributes:
        trained_from: index of the first character with weight 1; earlier ones have weight 0. None: all have weight 0.
        weights: ranges with other weights, in order.
    """

    text: str
    trained_from: int | None = None
    weights: tuple[Weighted, ...] = ()


Piece = Control | Stretch


def tokenise(pieces: Sequence[Piece], tokenizer: Tokenizer) -> list[tuple[list[int], list[float]]]:
    """Tokens of each piece and their weights.

    A token with characters of different weights gets the smallest: a token across the end of a trained range does not
    train.
    """
    pieces_of_tokens: list[tuple[list[int], list[float]]] = []
    stretches = iter(_encoded([piece for piece in pieces if isinstance(piece, Stretch)], tokenizer))
    for piece in pieces:
        if isinstance(piece, Control):
            pieces_of_tokens.append(([piece.id], [piece.weight]))
        else:
            ids, first = next(stretches)
            plain = not piece.weights
            weights = [0.0] * first + [1.0] * (len(ids) - first) if plain else _weights(piece, tokenizer)
            pieces_of_tokens.append((ids, weights))
    return pieces_of_tokens


def token_weights(offsets: Sequence[tuple[int, int]], of_characters: Sequence[float]) -> list[float]:
    """The smallest weight of the characters of each token; 0 for a token without characters.

    Args:
        offsets: half-open range of characters of each token.
        of_characters: the weight of each character.
    """
    return [min(of_characters[start:stop], default=0.0) for start, stop in offsets]


def _weights(stretch: Stretch, tokenizer: Tokenizer) -> list[float]:
    """Weights of the tokens of a stretch with ranges in `weights`."""
    begin = len(stretch.text) if stretch.trained_from is None else stretch.trained_from
    of_characters = [float(at >= begin) for at in range(len(stretch.text))]
    for part in stretch.weights:
        of_characters[part.start : part.stop] = [part.weight] * (min(part.stop, len(stretch.text)) - part.start)
    _, offsets = tokenizer.encode_with_offsets(stretch.text)
    return token_weights(offsets, of_characters)


def _encoded(stretches: Sequence[Stretch], tokenizer: Tokenizer) -> list[tuple[list[int], int]]:
    """Tokens of each stretch, and the index of the first trained one."""
    if "stretches" in tokenizer.capabilities:
        return tokenizer.encode_from([(stretch.text, stretch.trained_from) for stretch in stretches])
    encoded = []
    for stretch in stretches:
        ids, offsets = tokenizer.encode_with_offsets(stretch.text)
        begin = len(stretch.text) + 1 if stretch.trained_from is None else stretch.trained_from
        encoded.append((ids, next((i for i, (start, _) in enumerate(offsets) if start >= begin), len(ids))))
    return encoded


def is_taken_out(message: Message) -> bool:
    """Whether flags of its parts or characters exclude a message's whole content, so that its end does not train
    either."""
    texts = [(message.content, message.weights), (message.reasoning, message.reasoning_weights)]
    filled = [(text, weights) for text, weights in texts if text]
    return bool(filled) and not message.tool_calls and all(_weighs_nothing(*pair) for pair in filled)


def _weighs_nothing(text: str, weights: Sequence[Weighted]) -> bool:
    """Whether ranges of weight 0 cover the whole text."""
    at = 0
    for part in sorted(weights, key=lambda part: part.start):
        if part.weight or part.start > at:
            return False
        at = max(at, part.stop)
    return at >= len(text)


def trained_messages(messages: Sequence[Message], train_on: TrainOn) -> tuple[bool, ...]:
    """Which messages train: those `train_on` chooses, unless a message's own `train` differs, or the flags of its parts
    exclude all of it."""
    last = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=-1)
    chosen = {
        "assistant": [message.role == "assistant" for message in messages],
        "last": [i == last for i in range(len(messages))],
        "all": [True] * len(messages),
        "custom": [False] * len(messages),
    }[train_on]
    return tuple(
        (message.train if message.train is not None else trains) and not is_taken_out(message)
        for message, trains in zip(messages, chosen, strict=True)
    )


def why_untrained(example: Example) -> str:
    """The reason why an example with content trains nothing; empty for an example without content."""
    if isinstance(example, Segments):
        return "none of its segments trains" if any(text for text, _ in example.pieces) else ""
    if not isinstance(example, Conversation):
        return ""
    answers = [message for message in example.messages if message.role == "assistant"]
    answers = [message for message in answers if message.content or message.reasoning or message.tool_calls]
    if not answers:
        return ""
    flagged = any(message.train is False or is_taken_out(message) for message in answers)
    return "its flags exclude every answer" if flagged else "neither method.train_on nor a flag selects an answer"
