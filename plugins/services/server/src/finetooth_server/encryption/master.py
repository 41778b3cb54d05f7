"""Master keys: they encrypt only the data keys of folders and of the log.

A key is 32 random bytes, written in URL-safe base64. Several may be given: the first one encrypts, all of them decrypt,
so that a new one can be put first while data keys wrapped by the old one remain.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from finetooth_hooks import UserError

VARIABLE = "FT_ENCRYPTION_KEY"
"""Environment variable with master keys, separated by spaces or commas."""

SIZE = 32
NONCE = 12
"""Bytes of an AES-GCM nonce (NIST SP 800-38D, 8.2)."""


@dataclass(frozen=True)
class MasterKeys:
    """The given keys.

    Attributes:
        current: id of the encrypting one.
        by_id: all of them. An id is the beginning of the key's SHA-256 and reveals nothing about it.
    """

    current: str
    by_id: Mapping[str, bytes] = field(repr=False)

    def wrap(self, content: bytes, about: str) -> bytes:
        """Encrypt a few bytes with the current key: nonce, ciphertext, tag (AES-256-GCM).

        Args:
            about: the owner of the bytes; they can be unwrapped only with it.
        """
        nonce = secrets.token_bytes(NONCE)
        return nonce + AESGCM(self.by_id[self.current]).encrypt(nonce, content, about.encode())

    def unwrap(self, wrapped: bytes, key: str, about: str) -> bytes:
        """The inverse of `wrap`.

        Args:
            key: id of the key that wrapped it.

        Raises:
            UserError: the key is missing, or the bytes were changed or have another owner.
        """
        if key not in self.by_id:
            raise UserError(
                f"{about}: it is encrypted with the key {key or '?'}, which was not given",
                action=f"give that key too; given are {', '.join(self.by_id)}",
            )
        try:
            return AESGCM(self.by_id[key]).decrypt(wrapped[:NONCE], wrapped[NONCE:], about.encode())
        except (InvalidTag, ValueError) as error:
            raise UserError(
                f"{about}: its data keys were changed, or belong to something else", action="restore it from a copy"
            ) from error


def new_key() -> str:
    """A new key, in the format of key files."""
    return base64.urlsafe_b64encode(secrets.token_bytes(SIZE)).decode()


def master_keys(file: Path | None) -> MasterKeys | None:
    """The keys of a file, one per line, or else of the environment; None without any.

    Raises:
        UserError: both exist, a key is invalid, or others may read the file.
    """
    variable = os.environ.get(VARIABLE, "")
    if file is None:
        return parsed(variable.replace(",", " ").split(), VARIABLE) if variable.strip() else None
    if variable.strip():
        raise UserError(f"{VARIABLE} and {file}: two places for encryption keys", action="keep one of them")
    try:
        mode = file.stat().st_mode
        lines = file.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UserError(f"encryption key {file}: {reason}", action="make one with `ft encryption key FILE`") from error
    if os.name == "posix" and mode & 0o077:
        raise UserError(f"encryption key {file}: others may read it", action=f"chmod 600 {file}")
    return parsed([line.strip() for line in lines if line.strip() and not line.startswith("#")], str(file))


def parsed(texts: list[str], where: str) -> MasterKeys:
    """Keys from their texts, the first one current.

    Raises:
        UserError: the file is empty, or a line is not a key; the message does not show it.
    """
    keys: dict[str, bytes] = {}
    for number, text in enumerate(texts, 1):
        try:
            secret = base64.b64decode(text, altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            secret = b""
        if len(secret) != SIZE:
            raise UserError(
                f"{where}: key {number} is not {SIZE} bytes in base64", action="make one with `ft encryption key FILE`"
            )
        keys[hashlib.sha256(b"finetooth master key" + secret).hexdigest()[:16]] = secret
    if not keys:
        raise UserError(f"{where}: it holds no key", action="make one with `ft encryption key FILE`")
    return MasterKeys(next(iter(keys)), keys)
