"""Counts trained tokens of conversations by the role of their message."""

from __future__ import annotations

from collections.abc import Sequence

from finetooth_hooks.data.examples import Conversation, Rendered

from finetooth_rows.tally import NO_MESSAGE


def count_roles(example: Conversation, kept: Sequence[Rendered], counts: dict[str, int]) -> None:
    """Add the trained tokens of a conversation to the counts, with 0 for roles that train nothing.

    Args:
        kept: the sequences that become data. The first token of each does not count: it is not predicted, or it is the
            last one of the previous sequence.
    """
    for rendered in kept:
        spans = rendered.spans if len(rendered.spans) == len(example.messages) else ()
        rest = _count_trained(rendered, 1, len(rendered.tokens))
        for message, (begin, end) in zip(example.messages, spans, strict=False):
            own = _count_trained(rendered, max(1, begin), end)
            counts[message.role] = counts.get(message.role, 0) + own
            rest -= own
        if rest:
            counts[NO_MESSAGE] = counts.get(NO_MESSAGE, 0) + rest


def _count_trained(rendered: Rendered, start: int, stop: int) -> int:
    weights = rendered.weights[start:stop] if start < stop else ()
    return len(weights) - weights.count(0.0)
