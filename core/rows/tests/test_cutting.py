"""`excess_length: truncate_turns`: what is kept of turns, their media and what a preview shows of them."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from finetooth_hooks import Conversation, Message, Rendered, Text
from finetooth_hooks.data.examples import Medium, RenderedMedium
from finetooth_hooks.data.preparation import Limit
from finetooth_rows.cutting import answers_of, cut, cut_by_turns, cuts_medium, share
from finetooth_rows.preparing import render_rows
from finetooth_rows.storage.token_rows import TokenRows
from hypothesis import given
from hypothesis import strategies as st

TURNS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5)


def row(turns: list[tuple[int, int]], *, last: bool = False) -> Rendered:
    weights: list[float] = []
    answers = []
    for number, (prompt, answer) in enumerate(turns, start=1):
        answers.append((len(weights) + prompt, len(weights) + prompt + answer))
        weights += [0.0] * prompt + [float(not last or number == len(turns))] * answer
    return Rendered(tuple(range(len(weights))), tuple(weights), answers=tuple(answers))


@given(TURNS, st.integers(2, 40), st.booleans())
def test_turns_stay_whole_as_long_as_they_fit(turns: list[tuple[int, int]], longest: int, last: bool) -> None:
    """By turns from the end that stays: those that fit are whole, one is cut to fill the place, the others are gone."""
    rendered = row(turns, last=last)
    kept = {place for start, stop in cut_by_turns(rendered, longest) for place in range(start, stop)}
    backwards = last and len(turns) > 1
    room, at = longest, len(rendered.tokens) if backwards else 0
    wanted: set[int] = set()
    for prompt, answer in reversed(turns) if backwards else turns:
        at -= (prompt + answer) * backwards
        turn = list(range(at, at + prompt + answer))
        at += (prompt + answer) * (not backwards)
        if len(turn) <= room:
            wanted |= {*turn}
        else:
            asked, said = share(prompt, answer, room)
            wanted |= {*turn[:asked], *turn[prompt : prompt + said]}
            assert asked + said == room
            break
        room -= len(turn)
    assert kept == wanted


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 60))
def test_a_turn_is_shared_out_by_what_it_needs(prompt: int, answer: int, room: int) -> None:
    asked, said = share(prompt, answer, room)
    assert 0 <= asked <= prompt and 0 <= said <= answer and asked + said <= room
    if prompt + answer <= room:
        assert (asked, said) == (prompt, answer)
    elif 2 * answer < room:
        assert said == answer
    elif 2 * prompt < room:
        assert asked == prompt
    else:  # in proportion, but for one token that rounding may take
        assert abs(Fraction(room * answer, prompt + answer) - said) <= 1


def test_what_is_predicted_behind_a_gap_follows_what_is_kept() -> None:
    rendered = row([(8, 6)])
    portion, tally = render_rows([("r", Text(""))], lambda _: rendered, Limit(6, "truncate_turns"))
    (datum,) = TokenRows([portion])
    assert datum.tokens.tolist() == [0, 1, 2, 3, 8] and datum.targets.tolist() == [1, 2, 3, 8, 9]
    assert datum.fields["weights"].tolist() == [0, 0, 0, 1, 1]
    assert (tally.truncated, tally.trained_tokens) == (1, 2)


def test_media_move_with_their_tokens_or_leave_the_row_out() -> None:
    plain = row([(4, 4), (4, 4)], last=True)
    ranges = cut_by_turns(plain, 12)
    assert ranges == ((0, 2), (4, 6), (8, 16))

    def with_media(*places: tuple[int, int]) -> Rendered:
        return replace(plain, media=tuple(RenderedMedium(*at, Medium("a.png")) for at in places))

    rendered = with_media((0, 2), (2, 2), (9, 2))
    assert [(one.start, one.length) for one in cut(rendered, ranges).media] == [(0, 2), (5, 2)]
    assert not cuts_medium(rendered, ranges)
    assert cuts_medium(with_media((1, 2)), ranges) and cuts_medium(with_media((7, 2)), ranges)


class Renderer:
    """Writes `[role] content [end]`, a token each character; trains what `train_on` and the message say."""

    def render(self, conversation: Conversation, *, train_on: str = "assistant") -> Rendered:
        weights: list[float] = []
        spans = []
        last = len(conversation.messages) - 1
        for place, message in enumerate(conversation.messages):
            chosen = message.role == "assistant" if train_on == "assistant" else place == last or train_on == "all"
            trains = chosen if message.train is None else message.train
            begin = len(weights)
            weights += [float(train_on == "all"), *[float(trains)] * (len(message.content) + 1)]
            spans.append((begin, len(weights)))
        return Rendered(tuple(range(len(weights))), tuple(weights), tuple(spans))


@pytest.mark.parametrize("train_on", ["assistant", "last", "all"])
def test_answers_are_known_whatever_trains(train_on: str) -> None:
    messages = (Message("user", "ab"), Message("assistant", "c", train=False), Message("user", "d"),
                Message("assistant", "ef"))  # fmt: skip
    example = Conversation(messages)
    rendered = Renderer().render(example, train_on=train_on)
    assert answers_of(example, rendered, Renderer().render) == ((5, 7), (11, 14))
