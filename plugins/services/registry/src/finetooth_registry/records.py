"""Signed records: an in-toto statement in a DSSE envelope, signed with Ed25519.

The envelope is https://github.com/secure-systems-lab/dsse, the statement https://in-toto.io/Statement/v1. The signature
covers the statement's bytes, and its subject lists the SHA-256 of every file, so neither can be changed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from finetooth_hooks.errors import UserError
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, Key, SSlibKey  # type: ignore[attr-defined]

PAYLOAD = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:finetooth:record:1"
MADE_OF = ("base_digest", "recipe_sha256", "data")
"""Required keys of every record's predicate."""
KEY = "FT_REGISTRY_KEY"
"""The environment variable that names the file of a private key."""
LARGEST = 16 * 2**20
"""Most bytes of a record."""


def statement(files: Mapping[str, str], about: Mapping[str, Any], kind: str = PREDICATE) -> dict[str, Any]:
    """An in-toto statement about files.

    Args:
        files: SHA-256 by name.
        about: the predicate.
        kind: its type.
    """
    subject = [{"name": name, "digest": {"sha256": files[name]}} for name in sorted(files)]
    return {"_type": STATEMENT, "subject": subject, "predicateType": kind, "predicate": dict(about)}


def sign(content: Mapping[str, Any], signer: CryptoSigner) -> bytes:
    """An envelope around a statement, as JSON."""
    envelope = Envelope(_canonical(content), PAYLOAD, {})
    envelope.sign(signer)
    return _canonical(envelope.to_dict())


def unsigned(content: Mapping[str, Any]) -> bytes:
    """An envelope without a signature."""
    return _canonical(Envelope(_canonical(content), PAYLOAD, {}).to_dict())


def add_signature(record: bytes, signer: CryptoSigner) -> bytes:
    """The envelope with one more signature."""
    envelope = _envelope(record)
    envelope.sign(signer)
    return _canonical(envelope.to_dict())


def added_signatures(before: bytes, after: bytes) -> list[str]:
    """Ids of the keys that additionally signed a record.

    Raises:
        UserError: the second record differs, or lacks a signature of the first.
    """
    old, new = _envelope(before), _envelope(after)
    if (old.payload, old.payload_type) != (new.payload, new.payload_type):
        raise UserError("the signed record says something else", action="sign the record as it is")
    if any(new.signatures.get(keyid) != signature for keyid, signature in old.signatures.items()):
        raise UserError("the signed record lacks a signature", action="sign the record as it is")
    return sorted(new.signatures.keys() - old.signatures.keys())


def read(record: bytes, kind: str = PREDICATE) -> dict[str, Any]:
    """The statement in an envelope; signatures are not checked.

    Args:
        kind: the type that its predicate must have.

    Raises:
        UserError: the bytes are not an envelope of this format, or name files outside their folder.
    """
    try:
        content = json.loads(_envelope(record).payload)
        for name in {item["name"]: item["digest"]["sha256"] for item in content["subject"]}:
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(f"the file {name!r} lies outside of its folder")
        if content["_type"] != STATEMENT or content["predicateType"] != kind:
            raise ValueError("another type of statement")
        _ = content["predicate"]["name"], content["predicate"]["number"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"the record cannot be read: {error}", action="take a record that a registry wrote") from error
    return dict(content)


def digest(record: bytes) -> str:
    """SHA-256 of the statement in an envelope, independent of signatures."""
    return hashlib.sha256(_envelope(record).payload).hexdigest()


def is_signed(record: bytes) -> bool:
    """Whether any key signed it, trusted or not."""
    return bool(_envelope(record).signatures)


def signers_of(record: bytes, trusted: Mapping[str, Key]) -> tuple[str, ...]:
    """Names of the trusted keys whose signatures are valid.

    Args:
        trusted: keys by name.
    """
    envelope = _envelope(record)
    pae = envelope.pae()
    valid = []
    for name, key in trusted.items():
        signature = envelope.signatures.get(key.keyid)
        if signature is None:
            continue
        try:
            key.verify_signature(signature, pae)
        except Exception:  # an invalid signature, or not a signature
            continue
        valid.append(name)
    return tuple(sorted(valid))


def make_key(path: Path) -> Key:
    """Write a new private key, readable only by its owner; return the public key.

    Raises:
        UserError: the file exists, or cannot be written.
    """
    signer = CryptoSigner.generate_ed25519()
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(signer.private_bytes)
    except OSError as error:
        raise UserError(f"{path}: the key cannot be written: {error.strerror}", action="choose another file") from error
    return signer.public_key


def load_signer(path: Path) -> CryptoSigner:
    """The private key in a PEM file.

    Raises:
        UserError: the file cannot be read, or holds no Ed25519 key.
    """
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: no private key: {error}", action="make one with ft registry key FILE") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{path}: not an Ed25519 key", action="make one with ft registry key FILE")
    return CryptoSigner(key)


def own_signer() -> CryptoSigner | None:
    """The private key that FT_REGISTRY_KEY names; None if it names none.

    Raises:
        UserError: see `load_signer`.
    """
    file = os.environ.get(KEY)
    return load_signer(Path(file)) if file else None


def key_to_json(key: Key) -> str:
    """A public key as text."""
    return json.dumps({"keyid": key.keyid, **key.to_dict()}, sort_keys=True)


def key_from_json(text: str, where: str) -> Key:
    """A public key from its text.

    Raises:
        UserError: the text is not a public key.
    """
    try:
        content = json.loads(text)
        key: Key = SSlibKey.from_dict(content.pop("keyid"), content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{where}: not a public key: {error}", action="ft registry key FILE writes FILE.pub") from error
    if key.keytype != "ed25519":
        raise UserError(f"{where}: a key of type {key.keytype}", action="ft registry key FILE makes Ed25519 keys")
    return key


def _envelope(record: bytes) -> Envelope:
    if len(record) > LARGEST:
        raise UserError("the record is larger than 16 MiB", action="take a record that a registry wrote")
    try:
        return Envelope.from_dict(json.loads(record))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"the record cannot be read: {error}", action="take a record that a registry wrote") from error


def _canonical(content: Mapping[str, Any] | Sequence[Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
