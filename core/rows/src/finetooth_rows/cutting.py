"""Cuts rows that are too long so that answers still train (`excess_length: truncate_turns`).

A row is a sequence of turns, each a prompt (everything before an answer) and its answer. The first turns stay whole
while they fit; prompt and answer of the next turn are cut, and all later turns are left out. If only the last answer
trains, the last turns stay. LLaMA-Factory applies its `cutoff_len` in this way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

from finetooth_hooks.data.examples import Conversation, Message, Rendered

TURNS = "truncate_turns"
Range = tuple[int, int]
"""A half-open range of tokens."""


def cut(rendered: Rendered, ranges: Sequence[Range]) -> Rendered:
    """Some ranges of tokens of a row, concatenated, with the media in them.

    A medium that ends a range is left out: nothing is predicted from it.
    """
    size = len(rendered.tokens)
    if [*ranges] == [(0, size)]:
        return rendered
    places = [place for start, stop in ranges for place in range(start, stop)]
    remaining = set(places)
    before = [0, *accumulate(place in remaining for place in range(size))]  # remaining tokens before each token
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
    """Whether the model would read only a part of a medium. It only predicts the last token of all."""
    read = [*ranges[:-1], (ranges[-1][0], ranges[-1][1] - 1)]
    return any(
        medium.start < stop and start < medium.stop and not (start <= medium.start and medium.stop <= stop)
        for medium in rendered.media
        for start, stop in read
    )


def answers_of(
    example: Conversation, rendered: Rendered, render: Callable[[Conversation], Rendered]
) -> tuple[Range, ...]:
    """The ranges of all answers of a conversation, trained or not, each up to the end of its message.

    Args:
        render: renders a conversation in which every answer trains.
    """
    plain = tuple(replace(message, train=None, weights=(), reasoning_weights=()) for message in example.messages)
    other = render(replace(example, messages=plain))
    return _answers(other, example.messages) if other.tokens == rendered.tokens else ()


def cut_by_turns(rendered: Rendered, longest: int) -> tuple[Range, ...]:
    """The remaining ranges of a row with more than `longest` tokens."""
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
    """The remaining numbers of tokens of a prompt and its answer, with space for `room` tokens.

    The shorter of the two stays whole if it needs less than half of the space, the answer first. Otherwise both are cut
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
    """Ranges of trained tokens; one per assistant message, from its first trained token to its end."""
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
    """Whether some tokens train, and all of them are in the last answer."""
    last = answers[-1][0] if answers else 0
    return len(answers) > 1 and any(rendered.weights[last:]) and not any(rendered.weights[:last])


def _joined(ranges: Sequence[Range]) -> Iterator[Range]:
    """The ranges without empty ones, adjacent ones merged."""
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
