"""Pieces to tokens, and which messages train."""

from __future__ import annotations

import pytest
from finetooth_hooks.data.examples import Message, Weighted
from finetooth_kit import ByteTokenizer
from finetooth_toolbox.messages.markup import Control, Stretch, tokenise, trained_messages
from hypothesis import given
from hypothesis import strategies as st


class Pairs(ByteTokenizer):
    """Two characters a token, so that tokens can straddle."""

    def encode_with_offsets(self, text: str, *, special: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        assert not special  # markup is given as ids, text is never read as markup
        starts = range(0, len(text), 2)
        return [1 + i for i in starts], [(i, min(i + 2, len(text))) for i in starts]


@given(st.lists(st.tuples(st.text(max_size=7), st.none() | st.integers(0, 9), st.booleans()), max_size=4))
def test_a_token_trains_if_all_its_characters_do(stretches: list[tuple[str, int | None, bool]]) -> None:
    pieces = [p for text, begin, trained in stretches for p in (Control(300, float(trained)), Stretch(text, begin))]
    found = tokenise(pieces, Pairs())
    tokens = [token for ids, _ in found for token in ids]
    weights = [weight for _, values in found for weight in values]
    wanted: list[tuple[int, float]] = []
    for text, begin, trained in stretches:
        wanted.append((300, float(trained)))
        for start in range(0, len(text), 2):
            wanted.append((1 + start, float(begin is not None and start >= begin)))
    assert list(zip(tokens, weights, strict=True)) == wanted


def test_text_that_spells_markup_stays_text() -> None:
    found = tokenise([Control(258), Stretch("<|im_end|>")], ByteTokenizer())
    assert [ids for ids, _ in found] == [[258], [*b"<|im_end|>"]]


CHAT = (Message("system", "s"), Message("user", "a"), Message("assistant", "b"), Message("assistant", "c"))


@pytest.mark.parametrize(
    ("train_on", "wanted"),
    [("assistant", (False, False, True, True)), ("last", (False, False, False, True)), ("all", (True,) * 4)],
)
def test_train_on(train_on: str, wanted: tuple[bool, ...]) -> None:
    assert trained_messages(CHAT, train_on) == wanted  # type: ignore[arg-type]


def test_a_message_overrides() -> None:
    messages = (Message("user", "a", train=True), Message("assistant", "b", train=False))
    for train_on in ("assistant", "last", "all"):
        assert trained_messages(messages, train_on) == (True, False)  # type: ignore[arg-type]
    assert trained_messages((), "last") == ()


@pytest.mark.parametrize(
    ("message", "taken_out"),
    [
        (Message("assistant", "abcd", weights=(Weighted(0, 4, 0.0),)), True),
        (Message("assistant", "abcd", weights=(Weighted(0, 2, 0.0), Weighted(2, 4, 0.0))), True),
        (Message("assistant", "abcd", weights=(Weighted(0, 4, 0.0),), train=True), True),
        (Message("assistant", "abcd", weights=(Weighted(0, 2, 0.0), Weighted(3, 4, 0.0))), False),
        (Message("assistant", "abcd", weights=(Weighted(0, 3, 0.0),)), False),
        (Message("assistant", "abcd", weights=(Weighted(0, 2, 0.0), Weighted(2, 4, 0.5))), False),
        (Message("assistant", "abcd"), False),
        (Message("assistant", "ab", reasoning="cd", weights=(Weighted(0, 2, 0.0),)), False),
        (
            Message(
                "assistant", "ab", reasoning="cd", weights=(Weighted(0, 2, 0.0),),
                reasoning_weights=(Weighted(0, 2, 0.0),),
            ),
            True,
        ),
        (Message("assistant", "ab", tool_calls=({"function": {}},), weights=(Weighted(0, 2, 0.0),)), False),
        (Message("assistant", "", tool_calls=({"function": {}},)), False),
    ],
)  # fmt: skip
def test_a_message_of_which_nothing_is_left_does_not_train(message: Message, taken_out: bool) -> None:
    assert trained_messages((message,), "assistant") == (not taken_out,)
    assert trained_messages((Message("user", "q"), message), "all") == (True, not taken_out)


def test_ranges_of_a_stretch_have_their_own_weight() -> None:
    """Two characters a token: one that holds characters of two weights has the less of them."""
    stretch = Stretch("<>abcdefgh", 2, (Weighted(2, 5, 0.0), Weighted(7, 8, 0.5)))
    #                                            <>   ab   cd   ef   gh
    assert tokenise([stretch], Pairs())[0][1] == [0.0, 0.0, 0.0, 0.5, 1.0]
    untrained = Stretch("<>abcdefgh", None, (Weighted(4, 6, 1.0),))
    assert tokenise([untrained], Pairs())[0][1] == [0.0, 0.0, 1.0, 0.0, 0.0]
