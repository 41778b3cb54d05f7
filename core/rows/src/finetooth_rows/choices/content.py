"""The content of an example, as a hash that differs for all others, and as word sequences for finding near
duplicates."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finetooth_hooks.data.examples import Example, Medium

if TYPE_CHECKING:
    from numpy.typing import NDArray

PERMUTATIONS = 128
"""Of MinHash: the estimate of a similarity s errs by about sqrt(s (1 - s) / 128), 0.035 at 0.8."""
SHINGLE = 3
"""Number of consecutive words that are compared."""
FIRST_NAMED = {"media": "images", "medium": "image"}
"""Original names of renamed fields of examples, so that a renaming moves no row between training and held-out rows."""
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
"""Scripts without spaces between words: every character is a word."""
_WORDS = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def digest(*examples: Example) -> bytes:
    """16 bytes of a hash over everything in the examples of a row; the order of a mapping's keys has no effect."""
    content = [part for example in examples for part in (type(example).__name__, example)]
    try:
        text = json.dumps(content, default=_plain, sort_keys=True)
    except TypeError:  # keys of different types, which have no order
        text = repr(content)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _plain(value: Any) -> Any:
    """Plain data of an object that json does not support: fields of a mapping or of a part of an example, a hash of
    bytes, `repr` of others."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"bytes": hashlib.blake2b(value).hexdigest()}
    fields = getattr(type(value), "__dataclass_fields__", None)
    return repr(value) if fields is None else {FIRST_NAMED.get(name, name): getattr(value, name) for name in fields}


def lot(content: bytes, seed: int) -> int:
    """The lot of rows with this content, a 64-bit number; rows with the lowest lots are held out."""
    drawn = hashlib.blake2b(content, digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(drawn, "little")


def shingles(*examples: Example) -> set[str]:
    """All sequences of `SHINGLE` consecutive words, in lower case; with fewer words, one sequence of all. Without words
    every sign counts as a word.

    Each sequence begins with the content that is not text, so that rows share no sequence if they differ in a picture
    or in a yes-or-no label.
    """
    texts = list(_texts(examples))
    words = [word for text in texts for word in _WORDS.findall(text.lower())] or "".join("".join(texts).split())
    apart = [json.dumps(part, default=_plain) for part in _apart(examples)]
    before = f"{hashlib.blake2b(' '.join(apart).encode(), digest_size=16).hexdigest()} " if apart else ""
    return {before + " ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}


def _texts(value: Any) -> Iterator[str]:
    """All texts in an example except names of roles; numbers in a mapping, such as a call's arguments, count as
    texts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from (str(item),) if isinstance(item, int | float) else _texts(item)
    elif isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        for item in value:
            yield from _texts(item)
    else:
        for name in getattr(type(value), "__dataclass_fields__", ()):
            if isinstance(part := getattr(value, name), str | Mapping | Sequence) and name not in ("role", "train"):
                yield from _texts(part)


def _apart(value: Any) -> Iterator[Any]:
    """Pictures, sounds and videos of an example, and its yes-or-no labels."""
    if isinstance(value, Medium | bool):
        yield value
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _apart(item)
    else:
        for name in getattr(type(value), "__dataclass_fields__", ()):
            if name not in ("train", "from_text"):
                yield from _apart(getattr(value, name))


class NearRows:
    """Examples seen so far, by their MinHash.

    Args:
        threshold: smallest Jaccard similarity of the `shingles` with which an example counts as seen.

    Raises:
        ImportError: datasketch is not installed.
    """

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHash, MinHashLSH  # type: ignore[import-untyped]

        self._threshold = threshold
        self._empty = MinHash(num_perm=PERMUTATIONS, seed=1)
        # the index only proposes candidates, rather too many, and cannot be built for 1.0
        self._index = MinHashLSH(threshold=min(threshold, 0.95), num_perm=PERMUTATIONS, weights=(0.1, 0.9))
        self._kept: list[NDArray[Any]] = []

    def seen(self, *examples: Example) -> bool:
        """Whether a row with similar examples was seen; if not, remember this one."""
        sketch = self._empty.copy()  # a new one would draw its permutations again
        sketch.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in sorted(shingles(*examples))])
        values = sketch.hashvalues
        for place in self._index.query(sketch):
            if (self._kept[place] == values).mean() >= self._threshold:
                return True
        self._index.insert(len(self._kept), sketch)
        self._kept.append(values.copy())
        return False
