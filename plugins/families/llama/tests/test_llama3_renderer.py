"""What the renderer does whatever the template: ends of turn, weights of ranges, tokenizers it cannot use."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetooth_hooks import Conversation, Message, RecipeError
from finetooth_hooks.data.examples import Weighted
from finetooth_kit import ByteTokenizer, FakeContext, draws
from finetooth_llama.renderer import Llama3Options, build
from hypothesis import given, settings
from hypothesis import strategies as st

TEXT = st.one_of(
    st.text(max_size=30), st.lists(st.sampled_from([" ", "\n", "word", "été", "😀"]), max_size=8).map("".join)
)


def test_parse_stops_at_any_end(tmp_path: Path) -> None:
    tokenizer = ByteTokenizer()
    renderer = build(Llama3Options(), FakeContext(tmp_path, tokenizer=tokenizer))
    for end in ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"):
        parsed = renderer.parse([*tokenizer.encode("Yes."), *tokenizer.encode(f"{end}more", special=True)])
        assert (parsed.message.content, parsed.stop) == ("Yes.", "stop")
    assert renderer.parse(tokenizer.encode("Yes.")).stop == "length"


class Foreign(ByteTokenizer):
    """No Llama 3 tokens."""

    def token_id(self, token: str) -> int | None:
        return None if "header" in token else super().token_id(token)


def test_a_tokenizer_without_markup_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.renderer: the tokenizer has no <\|start_header_id\|>"):
        build(Llama3Options(), FakeContext(tmp_path, tokenizer=Foreign()))


@given(TEXT, st.lists(st.integers(0, 30), max_size=4), st.booleans())
@settings(deadline=None, max_examples=draws(20))
def test_ranges_weigh_what_they_say(
    tmp_path_factory: pytest.TempPathFactory, content: str, ends: list[int], trains: bool
) -> None:
    """Per byte: a character of several has several tokens, each with the character's weight."""
    tokenizer = ByteTokenizer()
    renderer = build(Llama3Options(), FakeContext(tmp_path_factory.mktemp("context"), tokenizer=tokenizer))
    ends = sorted(ends)[: len(ends) // 2 * 2]
    weights = tuple(Weighted(a, b, 0.25 + i) for i, (a, b) in enumerate(zip(ends[::2], ends[1::2], strict=True)))
    message = Message("assistant", content, train=trains, weights=weights)
    rendered = renderer.render(Conversation((Message("user", "go"), message)))
    cut = len(content) - len(content.lstrip())
    expected = []
    for at, letter in enumerate(content.strip()):
        own = [part.weight for part in weights if part.start <= at + cut < part.stop]
        expected += [own[0] if own else float(trains)] * len(letter.encode())
    end = len(rendered.weights) - 1
    assert list(rendered.weights[end - len(expected) : end]) == expected and rendered.weights[end] == float(trains)
    assert not any(rendered.weights[: end - len(expected)])
