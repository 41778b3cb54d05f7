"""Signatures in the format of `model_signing` (OpenSSF), for users of that command.

They cover the digest of every file of a folder, with an elliptic-curve key; the record holds the folder's origin.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from finetooth_hooks.errors import UserError, install_command

MAKE = "make one with openssl ecparam -name prime256v1 -genkey -noout -out FILE"


def check(key: Path) -> None:
    """Check that a folder can be signed, before it is written.

    Args:
        key: PEM file of the private key.

    Raises:
        UserError: the package is not installed, or the file holds no suitable key.
    """
    try:
        import model_signing.signing  # noqa: F401 - checks that it is installed
    except ImportError as error:
        raise UserError(
            f"--model-signing needs model-signing: {error}", action=install_command("finetooth-registry[model-signing]")
        ) from error
    try:
        private_key = load_pem_private_key(key.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{key}: no private key: {error}", action=MAKE) from error
    if not isinstance(private_key, ec.EllipticCurvePrivateKey):
        raise UserError(f"{key}: model_signing takes keys on P-256, P-384 or P-521", action=MAKE)


def sign_folder(folder: Path, key: Path) -> Path:
    """Sign every file of a folder; returns the signature's file, next to the folder.

    Raises:
        UserError: model_signing does not support the key's curve.
    """
    from model_signing.signing import Config

    signature = folder.with_name(f"{folder.name}.sig")
    try:
        Config().use_elliptic_key_signer(private_key=key).sign(folder, signature)  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise UserError(f"{key}: {error}", action=MAKE) from error
    return signature
