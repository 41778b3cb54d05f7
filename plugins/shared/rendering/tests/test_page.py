"""Pages to tokens: by pieces and as a whole give the same, text that spells markup stays text, ranges weigh."""

from __future__ import annotations

from typing import Any

import pytest
from finetooth_hooks import Conversation, DataError, Message, RecipeError
from finetooth_hooks.data.examples import Weighted
from finetooth_kit import ByteTokenizer
from finetooth_kit.templates import template_tokenizer
from finetooth_rendering.page import Controls, Page
from finetooth_rendering.turns import TurnRenderer, trimmed
from hypothesis import given, settings
from hypothesis import strategies as st

SPECIAL = ("<a>", "</a>")
TEXT = st.text(st.sampled_from("x \n<a>/é."), max_size=9)
PART = st.tuples(st.booleans(), TEXT, st.booleans(), st.lists(st.integers(0, 9), max_size=4), st.booleans())


def written(controls: Controls, parts: list[Any]) -> tuple[Page, list[tuple[str, float]]]:
    """A page, and its characters with their weights; what opens and closes is one character each, \\0 and \\1."""
    page = Page(controls)
    wanted: list[tuple[str, float]] = []
    for begins, text, trained, ends, closes in parts:
        if begins:
            page.message()
        page.markup("<a>")
        wanted.append(("\0", 0.0))
        ends = sorted(ends)[: len(ends) // 2 * 2]
        own = [Weighted(a, b, 0.5) for a, b in zip(ends[::2], ends[1::2], strict=True)]
        page.say(text, trained, own)
        for i, letter in enumerate(text):
            weight = 0.5 if any(w.start <= i < w.stop for w in own) else float(trained)
            wanted += [(letter, weight)] * len(letter.encode())
        page.markup("</a>" if closes else ".", trained)
        wanted.append(("\1" if closes else ".", float(trained)))
    return page, wanted


@settings(deadline=None)
@given(st.lists(PART, max_size=4))
def test_every_byte_has_its_weight(parts: list[Any]) -> None:
    """Both ways, over a tokenizer of bytes, where no token holds two characters."""
    tokenizer = ByteTokenizer([*ByteTokenizer()._special, *SPECIAL])
    controls = Controls("test", tokenizer, SPECIAL)
    assert controls.alone
    for alone in (True, False):
        controls.alone = alone
        page, wanted = written(controls, parts)
        rendered = page.rendered()
        assert list(rendered.weights) == [weight for _, weight in wanted]
        assert [rendered.tokens.count(tokenizer.token_id(name)) for name in SPECIAL] == [
            sum(letter == mark for letter, _ in wanted) for mark in "\0\1"
        ]
        assert len(rendered.spans) == sum(part[0] for part in parts)
        for begin, end in rendered.spans:
            assert rendered.tokens[begin] == tokenizer.token_id("<a>") and end <= len(rendered.tokens)


@settings(deadline=None, max_examples=60)
@given(st.lists(PART, max_size=3))
def test_both_ways_agree_on_merged_tokens(parts: list[Any]) -> None:
    controls = Controls("test", template_tokenizer("", SPECIAL, eos="</a>"), SPECIAL)
    assert controls.alone
    page, _ = written(controls, parts)
    by_pieces = page.rendered()
    controls.alone = False
    assert page.rendered() == by_pieces


def test_messages_may_begin_inside_a_stretch() -> None:
    page = Page(Controls("test", ByteTokenizer(), ("<|im_end|>",)))
    page.say("ab")
    page.message()
    page.say("cd", True)
    page.message()
    page.markup("<|im_end|>", True)
    page.message()
    assert page.rendered().spans == ((2, 4), (4, 5), (5, 5))
    assert page.text == "abcd<|im_end|>"


class Swallowing(ByteTokenizer):
    """Its `<|im_end|>` takes the blanks after it, as tokens with `rstrip` do."""

    def encode_with_offsets(self, text: str, *, special: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        ids, offsets = super().encode_with_offsets(text, special=special)
        kept: list[tuple[int, tuple[int, int]]] = []
        for id_, (start, stop) in zip(ids, offsets, strict=True):
            if kept and kept[-1][0] == self.token_id("<|im_end|>") and text[start:stop].isspace():
                kept[-1] = (kept[-1][0], (kept[-1][1][0], stop))
            else:
                kept.append((id_, (start, stop)))
        return [id_ for id_, _ in kept], [offset for _, offset in kept]


def test_a_token_that_swallows_blanks_still_trains() -> None:
    controls = Controls("test", Swallowing(), ("<|im_end|>",))
    assert not controls.alone
    page = Page(controls)
    page.say("ab", True)
    page.markup("<|im_end|>", True)
    page.markup("\n")
    page.say("c")
    rendered = page.rendered()
    assert (len(rendered.tokens), rendered.weights) == (4, (1.0, 1.0, 1.0, 0.0))


def test_a_missing_control_token_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"data\.renderer: the tokenizer has no no token, so its model .* speak test"):
        Controls("test", ByteTokenizer(), ("no token",))


class Plain(TurnRenderer):
    name = "plain"
    controls = ("<|im_end|>",)
    stops = ("<|im_end|>", "<|lost|>")

    def write(self, page: Page, conversation: Conversation, trained: Any, *, ask: bool) -> None:
        for message, trains in zip(conversation.messages, trained, strict=True):
            page.message()
            page.say(message.content, trains, message.weights, cut=trimmed(message.content))
            page.markup("<|im_end|>", trains)


def test_turns() -> None:
    renderer = Plain(ByteTokenizer())
    asked, answer = Message("user", " é "), Message("assistant", "\nyes ", weights=(Weighted(1, 3, 0.25),))
    rendered = renderer.render(Conversation((asked, answer)))
    assert rendered.tokens[: len(renderer.prompt([asked]))] == renderer.prompt([asked])
    assert rendered.weights == (0.0, 0.0, 0.0, 0.25, 0.25, 1.0, 1.0)
    parsed = renderer.parse(rendered.tokens[3:])
    assert (parsed.message.content, parsed.stop) == ("yes", "stop")
    assert str(renderer.refuse("no role 'x'", "messages[1]")).startswith("messages[1]: renderer plain has no role 'x'")
    assert trimmed("  ") == (2, 2) and trimmed(" a ") == (1, 2)


@pytest.mark.parametrize(
    ("lost", "what"),
    [(Message("user", "a", tool_calls=({},)), "calls"), (Message("tool", "a", reasoning="b"), "reasoning")],
)
def test_only_the_assistant_thinks_and_calls(lost: Message, what: str) -> None:
    renderer = Plain(ByteTokenizer())
    problem = rf"messages\[1\]: renderer plain has no place for {what} of the role"
    with pytest.raises(DataError, match=problem):
        renderer.render(Conversation((Message("user", "x"), lost)))
    with pytest.raises(DataError, match=problem):
        renderer.prompt([Message("user", "x"), lost])
