"""Markup that swallows the blanks beside it stays markup, also where the blanks are data."""

from __future__ import annotations

import pytest
from finetooth_kit.templates import template_tokenizer
from finetooth_toolbox.messages.encoding import Encoder
from finetooth_toolbox.text.tokenizers import FastTokenizer


@pytest.fixture(scope="module")
def swallowing() -> FastTokenizer:
    """Bytes, and a token `<a>` that takes the blanks after it."""
    import tokenizers

    made = template_tokenizer("", ["<e>"], eos="<e>")
    swallows = tokenizers.AddedToken("<a>", rstrip=True, normalized=False, special=True)
    made.wrapped.backend_tokenizer.add_special_tokens([swallows])
    return made


@pytest.mark.parametrize("said", [" ", "  x", "x "])
def test_a_token_that_swallows_data_is_markup(swallowing: FastTokenizer, said: str) -> None:
    text = f"<a>{said}<e>"
    encoded = Encoder(swallowing).encode(text, [(3, 3 + len(said))])
    assert list(encoded.ids) == swallowing.encode(text, special=True)
    assert encoded.special[0] and encoded.special[-1]


def test_a_token_that_data_spell_is_plain(swallowing: FastTokenizer) -> None:
    encoded = Encoder(swallowing).encode("<a> <a> x<e>", [(3, 9)])
    (first, last) = (swallowing.token_id("<a>"), swallowing.token_id("<e>"))
    assert list(encoded.ids) == [first, *swallowing.encode("<a> x"), last]
