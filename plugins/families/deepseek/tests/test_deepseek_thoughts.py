"""Reasoning that stands in the content of an answer, as many data sets have it: written or counted, never lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from finetooth_deepseek import markup as m
from finetooth_deepseek.fenced import DeepSeekR1, DeepSeekV3, FencedOptions
from finetooth_deepseek.hybrid import DeepSeekV31, DeepSeekV31Options
from finetooth_hooks import Conversation, DataError, Message
from finetooth_kit import ByteTokenizer
from finetooth_kit.templates import assert_reads_back, assert_trains, official
from finetooth_toolbox.text.tokenizers import FastTokenizer

Tokenizers = Callable[..., FastTokenizer]
TEMPLATES = {"v3": "deepseek-v3", "r1": "deepseek-r1-distill-qwen", "v31": "deepseek-v3.1"}
CALLED = {"type": "function", "function": {"name": "f", "arguments": "{}"}}


def built(kind: str, tokenizer: Any, **options: Any) -> Any:
    if kind == "v31":
        return DeepSeekV31(tokenizer, DeepSeekV31Options(**options))
    return {"v3": DeepSeekV3, "r1": DeepSeekR1}[kind](tokenizer, FencedOptions(**options))


THINKS_ALOUD = "<think>\nTwo and two.\n</think>\n\n4"
"""An answer whose reasoning stands in its content, as many data sets have it."""


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_think_block_in_the_content_is_reasoning(tokenizers: Tokenizers, kind: str) -> None:
    """The templates leave it out without a word; here it is written or counted."""
    tokenizer = tokenizers(TEMPLATES[kind])
    asked = Conversation((Message("user", "2+2?"), Message("assistant", THINKS_ALOUD)))
    plain = built(kind, tokenizer).render(asked)
    assert list(plain.tokens) == official(tokenizer, asked)[0]
    assert plain.remarks == ("reasoning left out",)
    thinking = built(kind, tokenizer, thinking=True)
    rendered = thinking.render(asked)
    assert rendered.remarks == ()
    lead = "\n" if kind == "v31" else ""  # whose prompt opens the block without a line feed
    assert_trains(thinking, tokenizer, asked, [f"{lead}Two and two.\n</think>\n\n4{m.END}"])
    wanted = ("\nTwo and two.\n", "\n\n4") if kind == "v31" else ("Two and two.", "4")
    assert_reads_back(thinking, asked, lambda _: Message("assistant", wanted[1], reasoning=wanted[0]))
    apart = replace(asked.messages[1], content=wanted[1], reasoning=wanted[0])
    assert rendered.tokens == thinking.render(Conversation((asked.messages[0], apart))).tokens
    grown = Conversation((*asked.messages, Message("user", "Sure?"), Message("assistant", "Yes.")))
    assert thinking.render(grown).remarks == ("reasoning left out",)
    assert built(kind, tokenizer, thinking=True, keep_reasoning=True).render(grown).remarks == ()


@pytest.mark.parametrize("kind", ["v3", "v31"])
def test_a_think_block_that_is_not_cut_out_is_not_counted(tokenizers: Tokenizers, kind: str) -> None:
    """Behind a tool, and beside the first call, the templates write all of the content."""
    tokenizer = tokenizers(TEMPLATES[kind])
    messages = (
        Message("user", "a"),
        Message("assistant", THINKS_ALOUD, tool_calls=(CALLED,)),
        Message("tool", "c"),
        Message("assistant", THINKS_ALOUD),
    )
    rendered = built(kind, tokenizer).render(Conversation(messages))
    assert rendered.remarks == ()
    assert list(rendered.tokens) == official(tokenizer, Conversation(messages))[0]


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.parametrize(
    "content", ["<think>a</think>b</think>c", "before <think>a</think>b", "<think>a<think>b</think>c"]
)
def test_think_blocks_that_would_be_read_back_otherwise(kind: str, content: str) -> None:
    asked = Conversation((Message("user", "a"), Message("assistant", content)))
    assert built(kind, ByteTokenizer()).render(asked).remarks == ("reasoning left out",)
    if kind == "v31" and content.startswith("<think>a</think>"):  # it splits at the first
        assert built(kind, ByteTokenizer(), thinking=True).render(asked).remarks == ()
        return
    with pytest.raises(DataError, match=r"messages\[1\].*a second inside or before it"):
        built(kind, ByteTokenizer(), thinking=True).render(asked)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_two_reasonings_of_one_answer_are_counted(kind: str) -> None:
    both = Conversation((Message("user", "a"), Message("assistant", "x</think>b", reasoning="c")))
    assert built(kind, ByteTokenizer(), thinking=True).render(both).remarks == (
        "a think block next to reasoning left out",
    )


@pytest.mark.parametrize("kind", ["v3", "r1"])
def test_reasoning_of_a_later_call_has_no_place(kind: str) -> None:
    first = (Message("user", "a"), Message("assistant", "", tool_calls=(CALLED,)), Message("tool", "c"))
    later = (Message("assistant", "d"), Message("user", "e"), Message("assistant", "", "t", tool_calls=(CALLED,)))
    asked = Conversation((*first, *later))
    thinking = {"thinking": True, "keep_reasoning": True}
    assert built(kind, ByteTokenizer(), **thinking).render(asked).remarks == ("reasoning left out",)
    assert built(kind, ByteTokenizer(), **thinking, whole_calls=True).render(asked).remarks == ()
