"""Makes an answer follow the exact tokens of its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from finetooth_hooks.data.examples import Rendered
from finetooth_hooks.protocols import Tokenizer


def as_asked(rendered: Rendered, asked: Sequence[int], tokenizer: Tokenizer) -> Rendered | None:
    """The conversation, beginning with the tokens of the prompt for its last answer.

    Many tokenizers split markup before a text differently than at the end of a prompt: two line feeds are one token at
    the end, but two before a letter. In inference a model always sees the former. The result keeps the prompt's tokens,
    and encodes a token across the boundary again.

    Args:
        asked: the tokens of the prompt.

    Returns:
        None if the text does not begin with the prompt's text, or the rest cannot be encoded after it.
    """
    tokens = rendered.tokens
    if tokens[: len(asked)] == tuple(asked):
        return rendered
    pairs = enumerate(zip(asked, tokens, strict=False))
    same = next((i for i, (ours, theirs) in pairs if ours != theirs), min(len(asked), len(tokens)))
    text = tokenizer.decode(asked[same:])
    stop, decoded = same, ""
    while stop < len(tokens) and not (decoded.startswith(text) and decoded):
        stop += 1
        decoded = tokenizer.decode(tokens[same:stop])
        if len(decoded) > len(text) and not decoded.startswith(text) and "\ufffd" not in decoded:
            return None
    between = tokenizer.encode(decoded[len(text) :])
    placed = any(medium.stop > same for medium in rendered.media)
    if placed or not decoded.startswith(text) or tokenizer.decode([*asked[same:], *between]) != decoded:
        return None
    inside = {*rendered.weights[same : stop - bool(between)]}
    before = inside.pop() if len(inside) == 1 else 0.0
    behind = rendered.weights[stop] if stop < len(tokens) else 0.0
    moved = len(asked) + len(between) - stop

    def at(place: int) -> int:
        return place if place <= same else max(same, place + moved) if place >= stop else same

    return replace(
        rendered,
        tokens=(*asked, *between, *tokens[stop:]),
        weights=(*rendered.weights[:same], *[before] * (len(asked) - same), *[behind] * len(between),
                 *rendered.weights[stop:]),
        spans=tuple((at(begin), at(end)) for begin, end in rendered.spans),
    )  # fmt: skip
