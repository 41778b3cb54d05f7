"""ASCII text to ids by remembering words: several times quicker than a Rust tokenizer, with the same ids.

A tokenizer first cuts a text into words by rules that look at characters alone, and then encodes each word for itself.
So the ids of a text are those of its words, and most words come again and again. Only cuts that are known to the letter
are taken over, and only for ASCII, where no two libraries can disagree about what a letter is; new words are encoded
by the tokenizer itself.
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
            found = known.get(word)
            if found is None:
                found = self._new(word)
            ids += found
        return ids

    def _new(self, word: str) -> list[int]:
        ids = self._encode(word)
        if len(word) <= LONGEST:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[word] = ids
        return ids


def ascii_words(backend: Any, encode: Callable[[str], list[int]]) -> AsciiWords | None:
    """For a tokenizer of the library tokenizers whose cut is known; None for any other.

    Args:
        backend: the `tokenizers.Tokenizer`.
        encode: ids of one word by it, nothing added.
    """
    if type(backend.normalizer).__name__ not in ("NoneType", "NFC"):  # NFC leaves ASCII as it is
        return None
    if not all(token.special for token in backend.get_added_tokens_decoder().values()):
        return None  # others are found in the text before it is cut
    try:
        cut = json.loads(backend.pre_tokenizer.__getstate__())
    except (AttributeError, TypeError, ValueError):
        return None
    pattern = _pattern(cut)
    return None if pattern is None else AsciiWords(pattern, encode)


def _pattern(cut: Mapping[str, Any]) -> str | None:
    """What a pre-tokenizer, as JSON, is for ASCII."""
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
    plain = first.get("behavior") == "Isolated" and first.get("invert") is False
    if not whole and first.get("type") == "Split" and plain:
        return _SPLITS.get(str(first.get("pattern", {}).get("Regex")))
    return None
