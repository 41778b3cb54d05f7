"""Pieces to tokens, and which messages train."""

from __future__ import annotations

import pytest
from finetooth_hooks.examples import Message
from finetooth_hooks.markup import Control, Stretch, tokenise, trained_messages
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
