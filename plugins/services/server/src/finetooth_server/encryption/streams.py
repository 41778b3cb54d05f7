"""Encrypts one file in chunks with its own key, so that a large one needs little memory.

Each chunk is AES-256-GCM with the chunk's number and a mark on the last one as its nonce, and the file's name as
associated data: changed, moved, missing or foreign chunks are detected (the STREAM construction; Hoang, Reyhanitabar,
Rogaway and Vizár, CRYPTO 2015). A key encrypts one file only, so no nonce comes twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

CHUNK = 2**20
"""Bytes of content in a chunk."""

TAG = 16
"""Bytes that encryption adds to a chunk."""


class Damaged(Exception):
    """A chunk was changed.

    Attributes:
        chunk: its number, from 0.
    """

    def __init__(self, chunk: int) -> None:
        super().__init__(chunk)
        self.chunk = chunk


def encrypt(source: BinaryIO, target: BinaryIO, key: bytes, name: str, chunk: int = CHUNK) -> int:
    """Copy a file, encrypted.

    Args:
        key: 32 random bytes, used only for this file.
        name: needed again to decrypt.
        chunk: bytes of content in each but the last one.

    Returns:
        Bytes of content.
    """
    cipher, size = AESGCM(key), 0
    for number, (content, last) in enumerate(_chunks(source, chunk)):
        target.write(cipher.encrypt(_nonce(number, last), content, name.encode()))
        size += len(content)
    return size


def decrypt(source: BinaryIO, target: BinaryIO, key: bytes, name: str, chunk: int = CHUNK) -> int:
    """Copy and decrypt a result of `encrypt`. After `Damaged`, the output must not be used.

    Raises:
        Damaged: a chunk was changed, moved, is missing or extra, or the key or the name is wrong.
    """
    cipher, size = AESGCM(key), 0
    for number, (content, last) in enumerate(_chunks(source, chunk + TAG)):
        try:
            plain = cipher.decrypt(_nonce(number, last), content, name.encode())
        except (InvalidTag, ValueError) as error:
            raise Damaged(number) from error
        target.write(plain)
        size += len(plain)
    return size


def _chunks(source: BinaryIO, size: int) -> Iterator[tuple[bytes, bool]]:
    """Pieces of a file and whether each is the last; an empty file has one empty piece."""
    content = source.read(size)
    while True:
        following = source.read(size)
        yield content, not following
        if not following:
            return
        content = following


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])
