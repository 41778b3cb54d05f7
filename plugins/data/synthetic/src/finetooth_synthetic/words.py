"""Words that a tokenizer keeps whole, so that a row's length in tokens is known when it is drawn."""

from __future__ import annotations

from finetooth_hooks.protocols import Tokenizer

ENOUGH = 2_000
"""Words from which rows are drawn, at most."""
FEW = 16
"""If there are fewer words with a space before them, letters are taken too."""


def whole_words(tokenizer: Tokenizer) -> list[str]:
    """Texts of one token each: a space and lower-case letters; where a tokenizer has no such words, letters alone.

    Put one after another they stay tokens of their own in tokenizers that begin a token at each space. The ids decide
    the order, so the same tokenizer gives the same list.
    """
    words: list[str] = []
    letters: list[str] = []
    for id_ in range(tokenizer.vocab_size):
        text = tokenizer.decode([id_])
        bare = text.removeprefix(" ")
        if not (bare.isascii() and bare.isalpha() and bare.islower()) or tokenizer.encode(text) != [id_]:
            continue
        (words if text.startswith(" ") else letters).append(text)
        if len(words) == ENOUGH:
            break
    return words if len(words) >= FEW else [letter for letter in letters if len(letter) == 1]
