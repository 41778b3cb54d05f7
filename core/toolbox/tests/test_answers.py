"""Texts that a scalar head scores: their tokens, and where they count."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetooth_hooks import DataError, Message, RecipeError
from finetooth_hooks.data.datum import Datum
from finetooth_kit import ByteTokenizer, FakeContext
from finetooth_kit.templates import template_tokenizer
from finetooth_toolbox.messages.answers import (
    rendered_answer,
    scored_at_end,
    separator_tokens,
    step_tokens,
    text_datum,
)


class PadsWithEnd(ByteTokenizer):
    """Ends texts with the token it pads with, as many models do."""

    @property
    def pad_id(self) -> int | None:  # type: ignore[override]
        return self.eos_id


def test_padding_at_the_end_is_not_scored(tmp_path: Path) -> None:
    """transformers' classifiers score the last token that is no padding."""
    context = FakeContext(tmp_path, tokenizer=PadsWithEnd())
    assert rendered_answer("p ", "a", context).tokens == tuple(context.tokenizer.encode("p a"))
    with pytest.raises(DataError, match="no token to score"):
        rendered_answer("", "", context)


def test_messages_and_text_are_not_mixed(tmp_path: Path) -> None:
    context = FakeContext(tmp_path)
    assistant = (Message("assistant", "a"),)
    with pytest.raises(DataError, match="not both messages or both text"):
        rendered_answer("p", assistant, context)


def test_a_rendered_text_counts_where_a_datum_of_it_does() -> None:
    tokens = (5, 6, 7)
    rendered = scored_at_end(tokens)
    made, own = Datum.from_tokens(rendered.tokens, rendered.weights), text_datum(tokens)
    assert made.tokens.tolist() == own.tokens.tolist() == [5, 6, 7]
    assert made.mask.tolist() == own.mask.tolist() == [False, False, True]


def test_steps_end_at_their_separator(tmp_path: Path) -> None:
    context = FakeContext(tmp_path)
    separator = separator_tokens("\n\n", context.tokenizer, "method.separator")
    assert len(separator) == 2
    tokens, ends = step_tokens("p", ("a", "bc"), context, separator)
    assert context.tokenizer.decode(tokens) == "pa\n\nbc\n\n"
    assert ends == (3, 7)
    with pytest.raises(RecipeError, match="has no tokens"):
        separator_tokens("", context.tokenizer, "method.separator")


def test_a_step_stands_behind_the_tokens_of_its_prompt_alone(tmp_path: Path) -> None:
    """Two line feeds are one token in the whole text: a model that is asked behind the prompt never sees it."""
    tokenizer = template_tokenizer("", ["<|end|>"], eos="<|end|>")
    prompt, whole = tokenizer.encode("Why?\n"), tokenizer.encode("Why?\n\nSo.\n")
    assert whole[: len(prompt)] != prompt
    context = FakeContext(tmp_path, tokenizer=tokenizer)
    tokens, ends = step_tokens("Why?\n", ("\nSo.", "\nYes."), context, tokenizer.encode("\n"))
    assert list(tokens[: len(prompt)]) == prompt
    assert list(tokens[: ends[0] + 1]) == [*prompt, *tokenizer.encode("\nSo."), *tokenizer.encode("\n")]
