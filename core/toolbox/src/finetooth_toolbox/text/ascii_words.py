"""ASCII text to ids by remembering words: several times quicker than a Rust tokenizer, with the same ids.

A tokenizer first cuts a text into words by rules that look at characters alone, and then encodes each word for itself.
So the ids of a text are those of its words, and most words come again and again. Only cuts that are known to the letter
are taken over, and only for ASCII, where no two libraries can disagree about what a letter is; new words are encoded
by the tokenizer itself.

None of this holds for a tokenizer that draws lots (BPE dropout), that weighs several ways to cut a word, or that finds
added tokens in a text before it is cut. And a tokenizer can be changed at any time: `WordMemory` looks again before
each use.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

REMEMBERED = 100_000
"""Words, of at most `LONGEST` characters."""
LONGEST = 64
WORTH = 2
"""Characters for each added token from which on words are remembered: going through the added tokens, to see that none
of them is found in plain text, takes about as long as a tokenizer takes for so many characters."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+"
_GPT2_DIGITS = r"[0-9]|'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[^\sA-Za-z0-9]+|\s+(?![^\s0-9])|\s+"
_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\nA-Za-z0-9]?[A-Za-z]+|[0-9]{{1,{digits}}}"
    r"| ?[^\sA-Za-z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WRITTEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS: Mapping[str, str] = MappingProxyType(
    {
        _WRITTEN % "{1,3}": _CL100K.format(digits=3),  # Llama 3
        _WRITTEN % "": _CL100K.format(digits=1),  # Qwen 2
    }
)
"""Patterns as tokenizers write them, and what they are for ASCII."""


class AsciiWords:
    """Ids of ASCII texts.

    Args:
        pattern: finds the words.
        encode: ids of one word, by the tokenizer.
    """

    def __init__(self, pattern: str, encode: Callable[[str], list[int]]) -> None:
        self._find = re.compile(pattern, re.ASCII).findall
        self._encode = encode
        self._known: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        """Ids of a text for which `isascii` is true."""
        known = self._known
        ids: list[int] = []
        for word in self._find(text):
            word_ids = known.get(word)
            if word_ids is None:
                word_ids = self._new(word)
            ids += word_ids
        return ids

    def _new(self, word: str) -> list[int]:
        ids = self._encode(word)
        if len(word) <= LONGEST:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[word] = ids
        return ids


class WordMemory:
    """The remembered words of a tokenizer, for as long as it encodes as it did.

    Noticed before each use: another tokenizer in its place, tokens added to it, dropout, another normalizer or
    pre-tokenizer, other settings of its model, a vocabulary of another size. (That its model was replaced in place by
    another one of the same size and settings cannot be seen.)

    Args:
        encode: ids of one word by the tokenizer as it is at that time, nothing added.
    """

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        self._encode = encode
        self._backend: Any = None
        self._nature: tuple[Any, ...] | None = None
        self._words: AsciiWords | None = None
        self._added = 0

    def of(self, backend: Any, characters: int) -> AsciiWords | None:
        """Words of the tokenizer as it is now; None if they cannot be remembered, or it is not worth while.

        Args:
            backend: the `tokenizers.Tokenizer`, set to take special tokens in a text for plain text.
            characters: how many are to be encoded.
        """
        nature = _nature(backend)
        if backend is not self._backend or nature != self._nature:
            self._backend, self._nature, self._added = backend, nature, 0
            pattern = None if nature is None else _pattern(json.loads(nature[0]))
            self._words = None if pattern is None else AsciiWords(pattern, self._encode)
        if self._words is None or characters < WORTH * self._added:
            return None
        added = backend.get_added_tokens_decoder()
        self._added = len(added)
        if not all(token.special for token in added.values()):  # others are found in the text before it is cut
            self._words = None  # and stay: a tokenizer forgets no token
        return self._words


def ascii_words(backend: Any, encode: Callable[[str], list[int]]) -> AsciiWords | None:
    """For a tokenizer of the library tokenizers whose cut is known; None for any other.

    Args:
        backend: the `tokenizers.Tokenizer`. If it may change, use `WordMemory`.
        encode: ids of one word by it, nothing added.
    """
    return WordMemory(encode).of(backend, 0)


def _nature(backend: Any) -> tuple[Any, ...] | None:
    """What decides the ids of plain text apart from added tokens, the cut first; None if words cannot be remembered."""
    try:
        model = backend.model
        # BPE alone encodes a word in one way only, and without dropout; NFC leaves ASCII as it is
        if type(model).__name__ != "BPE" or model.dropout:
            return None
        cutter = backend.pre_tokenizer
        if type(backend.normalizer).__name__ not in ("NoneType", "NFC") or cutter is None:
            return None
        settings = (model.unk_token, model.fuse_unk, model.byte_fallback, model.ignore_merges)
        affixes = (model.continuing_subword_prefix, model.end_of_word_suffix)
        return cutter.__getstate__(), settings, affixes, backend.get_vocab_size(with_added_tokens=False)
    except Exception:  # a custom pre-tokenizer cannot be written, which the library says with an Exception of no kind
        return None


def _pattern(cut: Mapping[str, Any]) -> str | None:
    """What a pre-tokenizer, as JSON, is for ASCII; None if its cut is not known to the letter."""
    parts = cut.get("pretokenizers", []) if cut.get("type") == "Sequence" else [cut]
    last = parts[-1] if parts else {}
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space") is not False:
        return None
    whole = last.get("use_regex", True) is True
    if len(parts) == 1:
        return _GPT2 if whole else None
    first = parts[0] if len(parts) == 2 else {}
    if whole and first.get("type") == "Digits" and first.get("individual_digits") is True:
        return _GPT2_DIGITS
    plain = first.get("type") == "Split" and first.get("behavior") == "Isolated" and first.get("invert") is False
    return _SPLITS.get(str(first.get("pattern", {}).get("Regex"))) if plain and not whole else None
