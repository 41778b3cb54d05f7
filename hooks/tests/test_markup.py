"""Pieces to tokens, and which messages train."""

from __future__ import annotations

import pytest
from finetooth_hooks.examples import Message, Weighted
from finetooth_hooks.markup import Control, Stretch, said, tokenise, trained_messages
from finetooth_hooks.testing import ByteTokenizer
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
    pieces = [p for text, begin, trained in stretches for p in (Control(300, trained), Stretch(text, begin))]
    tokens, weights = tokenise(pieces, Pairs())
    wanted: list[tuple[int, float]] = []
    for text, begin, trained in stretches:
        wanted.append((300, float(trained)))
        for start in range(0, len(text), 2):
            wanted.append((1 + start, float(begin is not None and start >= begin)))
    assert list(zip(tokens, weights, strict=True)) == wanted


def test_text_that_spells_markup_stays_text() -> None:
    tokens, _ = tokenise([Control(258), Stretch("<|im_end|>")], ByteTokenizer())
    assert tokens == [258, *b"<|im_end|>"]


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


def test_ranges_of_a_content_have_their_own_weight() -> None:
    """Two characters a token: one that holds characters of two weights has the less of them."""
    content = "abcdefgh"
    stretch = said("<>", content, [Weighted(0, 3, 0.0), Weighted(5, 6, 0.5)], trains=True)
    assert stretch.text == "<>abcdefgh"
    #                                    <>   ab   cd   ef   gh
    assert tokenise([stretch], Pairs())[1] == [0.0, 0.0, 0.0, 0.5, 1.0]
    untrained = said("<>", content, [Weighted(2, 4, 1.0)], trains=False)
    assert tokenise([untrained], Pairs())[1] == [0.0, 0.0, 1.0, 0.0, 0.0]


@given(st.text(st.characters(codec="ascii"), max_size=12), st.lists(st.integers(0, 12), max_size=6), st.booleans())
def test_said_weighs_characters(content: str, ends: list[int], trains: bool) -> None:
    ends = sorted(ends)[: len(ends) // 2 * 2]
    parts = [Weighted(a, b, float(i % 2)) for i, (a, b) in enumerate(zip(ends[::2], ends[1::2], strict=True))]
    tokens, weights = tokenise([said("head", content, parts, trains=trains)], ByteTokenizer())
    wanted = [float(trains)] * len(content)
    for part in parts:
        for at in range(part.start, min(part.stop, len(content))):
            wanted[at] = part.weight
    assert weights == [0.0] * 4 + wanted and len(tokens) == 4 + len(content)


def test_what_the_markup_cuts_off_shifts_the_ranges() -> None:
    stretch = said("", "word", [Weighted(0, 3, 0.0)], trains=True, cut=2)  # "  word" without its blanks
    assert tokenise([stretch], ByteTokenizer())[1] == [0.0, 1.0, 1.0, 1.0]
