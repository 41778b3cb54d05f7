"""Whose words train: tokens of conversations by the role of the message that holds them."""

from __future__ import annotations

from collections.abc import Sequence

from finetooth_hooks.examples import Conversation, Rendered

from finetooth_rows.tally import NO_MESSAGE


def count_roles(
    example: Conversation, rendered: Rendered, kept: Sequence[tuple[int, int]], counts: dict[str, int]
) -> None:
    """Add what trains of a conversation to the counts; roles that train nothing are named too.

    Args:
        kept: half-open ranges of its tokens that become data, one each. The first token of a range does not count: it
            is predicted from nothing, or by the range before.
    """
    told = rendered.spans if len(rendered.spans) == len(example.messages) else ()
    for message in example.messages if told else ():
        counts.setdefault(message.role, 0)
    for start, stop in kept:
        rest = _count_trained(rendered, start + 1, stop)
        for message, (begin, end) in zip(example.messages, told, strict=False):
            own = _count_trained(rendered, max(start + 1, begin), min(stop, end))
            counts[message.role] += own
            rest -= own
        if rest:
            counts[NO_MESSAGE] = counts.get(NO_MESSAGE, 0) + rest


def _count_trained(rendered: Rendered, start: int, stop: int) -> int:
    weights = rendered.weights[start:stop] if start < stop else ()
    return len(weights) - weights.count(0.0)
