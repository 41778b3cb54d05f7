"""Which encoding a text table has, and its bytes as UTF-8: programs for tables write older ones, without saying so."""

# ruff: noqa: RUF001

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from finetooth_hooks import DataError, RecipeError
from finetooth_toolbox.files.packed import BYTE_ORDER_MARK, FOREIGN_ENCODINGS, open_bytes

UTF_8 = "utf-8"
WINDOWS = "cp1252"
"""Western European Windows, of which Latin-1 is a part as far as text goes."""
OTHERS = ["cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256"]
LOOKED_AT = 1 << 18
"""Bytes that are looked at, from the first one on that is not ASCII."""
SIGNS = frozenset("€‚„…‹‘’“”•–—™›£§©«®°±²³´·»¼½¾¿¡")
ENOUGH = 8
"""Bytes beyond ASCII from which on another encoding is guessed: one broken byte is a fault of the file."""
FOREIGN_SHARE = 0.4
"""Share of accented letters of all letters, up to which a text is Western European."""


def encoding_of(path: Path) -> str:
    """The encoding of a text file: UTF-8, UTF-16 by its mark, or an older one that its bytes fit; `utf-8` where nothing
    fits or it cannot be read, so that its reader says what is wrong."""
    try:
        with open_bytes(path) as file:
            start = file.read(LOOKED_AT)
            if start[:2] in FOREIGN_ENCODINGS:
                return "utf-16"
            if start.startswith(BYTE_ORDER_MARK):
                return UTF_8
            while start and start.isascii():
                start = file.read(LOOKED_AT)
            sample = start + file.readline()
    except (DataError, OSError):
        return UTF_8
    if _has_utf8(sample):
        return UTF_8
    return WINDOWS if _is_western(sample) else _guessed(sample)


@contextmanager
def open_utf8(path: Path, encoding: str) -> Iterator[BinaryIO]:
    """The bytes of a text file in UTF-8, from any supported encoding; decompressed like `open_bytes`.

    Raises:
        DataError: a byte is invalid in the encoding; also as `open_bytes`.
    """
    with open_bytes(path) as file:
        if encoding == UTF_8:
            yield file
        else:
            yield cast(BinaryIO, io.BufferedReader(_Recoded(file, encoding, path.as_posix()), 1 << 18))


def python_encoding(encoding: str) -> str:
    """The name by which Python knows an encoding.

    Raises:
        RecipeError: it knows none of this name.
    """
    try:
        return codecs.lookup(encoding).name
    except LookupError:
        problem = f"{encoding!r} is not the name of an encoding"
        raise RecipeError(
            "source tables, encoding", problem, action="write one such as utf-8, cp1252 or utf-16"
        ) from None


class _Recoded(io.RawIOBase):
    """A file's bytes, decoded and encoded as UTF-8."""

    def __init__(self, file: BinaryIO, encoding: str, name: str) -> None:
        self._file, self._encoding, self._name = file, encoding, name
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._left, self._ended = b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left and not self._ended:
            content = self._file.read(1 << 16)
            self._ended = not content
            try:
                self._left = self._decoder.decode(content, final=self._ended).encode("utf-8")
            except UnicodeError as error:
                problem = f"it is not {self._encoding} throughout: {error}"
                raise DataError(self._name, problem, action="set encoding, or save it as UTF-8") from error
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count


def _has_utf8(sample: bytes) -> bool:
    """Whether some character beyond ASCII is UTF-8: a broken byte in such a file is a fault of the file."""
    text = sample.decode("utf-8", "surrogateescape")
    return text.isascii() or any(ord(c) > 127 and not 0xDC80 <= ord(c) <= 0xDCFF for c in text)


def _is_western(sample: bytes) -> bool:
    """Whether the bytes are words with some accented letters, and signs that are usual in them."""
    try:
        text = sample.decode(WINDOWS)
    except UnicodeDecodeError:
        return False
    letters = [c for c in text if c.isalpha()]
    foreign = [c for c in text if ord(c) > 127]
    usual = all((c.isalpha() and c not in "ÿþÞ") or c in SIGNS or c == "\xa0" for c in foreign)
    return usual and sum(ord(c) > 127 for c in letters) <= FOREIGN_SHARE * len(letters)


def _guessed(sample: bytes) -> str:
    """An encoding of another part of the world, where there is enough text to tell."""
    if sum(byte > 127 for byte in sample) < ENOUGH:
        return UTF_8
    from charset_normalizer import from_bytes  # only for files that are neither UTF-8 nor Western European

    best = from_bytes(sample, cp_isolation=OTHERS, threshold=0.1).best()
    return UTF_8 if best is None else best.encoding
