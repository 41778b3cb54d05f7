"""Rows that are too long, cut so that answers keep training (`excess_length: truncate_turns`).

A row is a sequence of turns, each a prompt (all that stands before an answer) and its answer. The first turns stay
whole as long as they fit; of the one that does not, prompt and answer are cut, and what follows is left out. If the
last answer alone trains, the last turns stay. This is how LLaMA-Factory reads its `cutoff_len`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

from finetooth_hooks.data.examples import Conversation, Message, Rendered

TURNS = "truncate_turns"
Range = tuple[int, int]
"""Half-open, of tokens."""


def cut(rendered: Rendered, ranges: Sequence[Range]) -> Rendered:
    """Some tokens of a row, one range behind the other, with the media that lie in them.

    A medium that ends a range is left out: nothing is predicted from it.
    """
    size = len(rendered.tokens)
    if [*ranges] == [(0, size)]:
        return rendered
    places = [place for start, stop in ranges for place in range(start, stop)]
    remaining = set(places)
    before = [0, *accumulate(place in remaining for place in range(size))]  # how many are kept before each token
    inside = (
        medium
        for medium in rendered.media
        if any(start <= medium.start and medium.stop <= stop for start, stop in ranges) and medium.stop <= places[-1]
    )
    return replace(
        rendered,
        tokens=tuple([rendered.tokens[place] for place in places]),
        weights=tuple([rendered.weights[place] for place in places]),
        spans=tuple((before[begin], before[end]) for begin, end in rendered.spans),
        media=tuple(replace(medium, start=before[medium.start]) for medium in inside),
        answers=(),
    )


def cuts_medium(rendered: Rendered, ranges: Sequence[Range]) -> bool:
    """Whether a part of a medium would be read. The last token of all is only predicted."""
    read = [*ranges[:-1], (ranges[-1][0], ranges[-1][1] - 1)]
    return any(
        medium.start < stop and start < medium.stop and not (start <= medium.start and medium.stop <= stop)
        for medium in rendered.media
        for start, stop in read
    )


def answers_of(
    example: Conversation, rendered: Rendered, render: Callable[[Conversation], Rendered]
) -> tuple[Range, ...]:
    """The answers of a conversation, whether they train or not, each to the end of its message.

    Args:
        render: writes a conversation of which every answer trains.
    """
    plain = tuple(replace(message, train=None, weights=(), reasoning_weights=()) for message in example.messages)
    other = render(replace(example, messages=plain))
    return _answers(other, example.messages) if other.tokens == rendered.tokens else ()


def cut_by_turns(rendered: Rendered, longest: int) -> tuple[Range, ...]:
    """The tokens that are kept of a row with more than `longest` tokens."""
    answers = rendered.answers or _answers(rendered, ())
    bounds = [0, *(stop for _, stop in answers)]
    turns = [(begin, start, stop) for begin, (start, stop) in zip(bounds, answers, strict=False)]
    if bounds[-1] < len(rendered.tokens):
        turns.append((bounds[-1], len(rendered.tokens), len(rendered.tokens)))
    backwards = _trains_last_alone(rendered, answers)
    ranges: list[Range] = []
    room = longest
    for begin, middle, end in reversed(turns) if backwards else turns:
        if room <= 0:
            break
        prompt, answer = share(middle - begin, end - middle, room)
        room -= prompt + answer
        both = [(begin, begin + prompt), (middle, middle + answer)]
        ranges = [*both, *ranges] if backwards else [*ranges, *both]
    return tuple(_joined(ranges))


def share(prompt: int, answer: int, room: int) -> Range:
    """How many tokens of a prompt and of its answer are kept in a place for `room` tokens.

    The shorter of the two stays whole if it takes less than half of the place, the answer first. Otherwise both are cut
    in proportion to their lengths.
    """
    if 2 * answer < room:
        answer_room = answer
    elif 2 * prompt < room:
        answer_room = min(answer, room - prompt)
    else:
        answer_room = min(answer, int(room * (answer / (prompt + answer))))  # in floats, as LLaMA-Factory rounds
    return min(prompt, room - answer_room), answer_room


def _answers(rendered: Rendered, messages: Sequence[Message]) -> tuple[Range, ...]:
    """Stretches of tokens that train; of a message of the assistant one, from its first such token to its end."""
    if messages and len(messages) == len(rendered.spans):
        ranges = []
        for message, (begin, end) in zip(messages, rendered.spans, strict=True):
            first = next((i for i in range(begin, end) if rendered.weights[i]), end)
            if message.role == "assistant" and first < end:
                ranges.append((first, end))
        return tuple(ranges)
    return tuple(_runs(rendered.weights))


def _runs(weights: Sequence[float]) -> Iterator[Range]:
    begin = None
    for place, weight in enumerate((*weights, 0.0)):
        if weight and begin is None:
            begin = place
        elif not weight and begin is not None:
            yield begin, place
            begin = None


def _trains_last_alone(rendered: Rendered, answers: Sequence[Range]) -> bool:
    """Whether something trains, and all of it stands in the last answer."""
    last = answers[-1][0] if answers else 0
    return len(answers) > 1 and any(rendered.weights[last:]) and not any(rendered.weights[:last])


def _joined(ranges: Sequence[Range]) -> Iterator[Range]:
    """Without empty ranges; those that meet are one."""
    begin = end = -1
    for start, stop in ranges:
        if start == end:
            end = stop
        elif start < stop:
            if begin < end:
                yield begin, end
            begin, end = start, stop
    if begin < end:
        yield begin, end
