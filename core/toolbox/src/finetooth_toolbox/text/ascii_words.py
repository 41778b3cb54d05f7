"""Encodes ASCII text with remembered words: several times faster than a Rust tokenizer, with the same ids.

A tokenizer first splits a text into words by rules about characters, and then encodes each word separately. So the ids
of a text are those of its words, and most words repeat. This module supports only exactly known rules, and only ASCII,
where all libraries agree about letters; the tokenizer itself encodes new words.

This is wrong for a tokenizer with random splits (BPE dropout), with several possible splits of a word, or with added
tokens that it finds before splitting. A tokenizer can also change at any time: `WordMemory` checks before each use.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

REMEMBERED = 100_000
"""Largest number of remembered words, of at most `LONGEST` characters."""
LONGEST = 64
WORTH = 2
"""Smallest number of characters per added token for words to be remembered: checking that no added token is found in
plain text takes about as long as encoding this many characters."""

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
"""Equivalent patterns for ASCII, by the patterns of tokenizers."""


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
    """The remembered words of a tokenizer, valid while its encoding does not change.

    Each use checks for another tokenizer object, added tokens, dropout, another normalizer or pre-tokenizer, other
    settings of its model, and another size of the vocabulary. (A replacement of its model by one of the same size and
    settings is not detectable.)

    Args:
        encode: ids of one word by the present tokenizer, without added tokens.
    """

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        self._encode = encode
        self._backend: Any = None
        self._nature: tuple[Any, ...] | None = None
        self._words: AsciiWords | None = None
        self._added = 0

    def of(self, backend: Any, characters: int) -> AsciiWords | None:
        """Words of the present tokenizer; None if they cannot be remembered, or it is not worthwhile.

        Args:
            backend: the `tokenizers.Tokenizer`, set to read special tokens in a text as plain text.
            characters: number of characters to encode.
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
        if not all(token.special for token in added.values()):  # others are found in the text before splitting
            self._words = None  # and stay: a tokenizer forgets no token
        return self._words


def ascii_words(backend: Any, encode: Callable[[str], list[int]]) -> AsciiWords | None:
    """Words for a tokenizer of the library tokenizers with known splitting rules; None for others.

    Args:
        backend: the `tokenizers.Tokenizer`. If it may change, use `WordMemory`.
        encode: its ids of one word, without added tokens.
    """
    return WordMemory(encode).of(backend, 0)


def _nature(backend: Any) -> tuple[Any, ...] | None:
    """The facts that determine the ids of plain text besides added tokens, splitting rules first; None if words cannot
    be remembered."""
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
    except Exception:  # a custom pre-tokenizer cannot be serialised; the library raises a plain Exception
        return None


def _pattern(cut: Mapping[str, Any]) -> str | None:
    """The pattern of a pre-tokenizer (as JSON) for ASCII; None if its rules are not exactly known."""
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
