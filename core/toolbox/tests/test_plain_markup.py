"""Text outside of messages that spells control tokens: noticed, and read as tokens where the recipe says so."""

from __future__ import annotations

import pytest
from finetooth_hooks import Conversation, Message, PromptCompletion, Text
from finetooth_hooks.data.examples import Example, Pair
from finetooth_kit import ByteTokenizer
from finetooth_toolbox.messages.plain_markup import PlainMarkup
from finetooth_toolbox.messages.prompts import encode_document, render_completion

CHAT = "<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>"


@pytest.fixture
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


@pytest.mark.parametrize(
    "example",
    [Text(CHAT), PromptCompletion(CHAT, " More."), PromptCompletion("Hello? ", CHAT), Pair(CHAT, "a", "b")],
)
def test_it_is_noticed(tokenizer: ByteTokenizer, example: Example) -> None:
    told = PlainMarkup(tokenizer).notice(example)
    assert "<|im_start|>" in told and "data.markup: special" in told and "segments" in told


@pytest.mark.parametrize(
    "example",
    [
        Text("a < b, <b>bold</b> and [A] | x |"),
        Text(""),
        Conversation((Message("user", CHAT), Message("assistant", "Yes."))),  # a message stays plain on purpose
    ],
)
def test_nothing_else_is(tokenizer: ByteTokenizer, example: Example) -> None:
    assert PlainMarkup(tokenizer).notice(example) == ""


def test_special_reads_what_the_tokenizer_itself_would(tokenizer: ByteTokenizer) -> None:
    plain, special = (encode_document(CHAT, tokenizer, markup) for markup in ("plain", "special"))
    assert list(plain) == tokenizer.encode(CHAT) and list(special) == tokenizer.encode(CHAT, special=True)
    assert len(special) < len(plain)


def test_a_completion_may_spell_its_own_end(tokenizer: ByteTokenizer) -> None:
    end = tokenizer.decode([tokenizer.eos_id])
    given = PromptCompletion("Hello?", f" Yes.{end}")
    tokens = render_completion(given, tokenizer, markup="special").tokens
    assert list(tokens) == tokenizer.encode(f"Hello? Yes.{end}", special=True) and tokens.count(tokenizer.eos_id) == 1
    rendered = render_completion(given, tokenizer, markup="special")
    trained = [token for token, weight in zip(rendered.tokens, rendered.weights, strict=True) if weight]
    assert tokenizer.decode(trained) == f" Yes.{end}"
    # as plain text, it is characters, and the real end follows
    assert render_completion(given, tokenizer).tokens[-1] == tokenizer.eos_id
    assert render_completion(given, tokenizer).tokens.count(tokenizer.eos_id) == 1
