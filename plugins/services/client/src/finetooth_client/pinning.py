"""TLS with a server that is known only by the fingerprint of its certificate.

The client compares the certificate after the handshake and before it sends anything, so a key never reaches another
server.
"""

from __future__ import annotations

import hashlib
import re
import ssl

from finetooth_hooks import UserError


def trust(verify: bool | str, fingerprint: str | None) -> bool | ssl.SSLContext:
    """The HTTP client's argument `verify`.

    Args:
        verify: False, or the path of a certificate.
        fingerprint: SHA-256 of the server's certificate, 64 hexadecimal digits, colons allowed; `verify` is then not
            looked at.

    Raises:
        UserError: the text is not a fingerprint, or the server has no certificate.
    """
    if fingerprint is not None:
        return _pinned(fingerprint)
    if isinstance(verify, str):
        try:
            return ssl.create_default_context(cafile=verify)
        except (OSError, ssl.SSLError) as error:
            raise UserError(f"verify: {verify} holds no certificate", action="give a PEM file") from error
    return verify


def untrusted(error: BaseException | None) -> bool:
    """Whether a request failed because of the server's certificate; repeating it is useless."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _pinned(fingerprint: str) -> ssl.SSLContext:
    wanted = fingerprint.replace(":", "").lower()
    if not re.fullmatch(r"[0-9a-f]{64}", wanted):
        raise UserError(
            "fingerprint: it is not a SHA-256", action="give the 64 hexadecimal digits that `ft serve` printed"
        )

    def check(certificate: bytes | None) -> None:
        if hashlib.sha256(certificate or b"").hexdigest() != wanted:
            raise ssl.SSLCertVerificationError("the server's certificate has another fingerprint")

    class Socket(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            super().do_handshake(block)
            check(self.getpeercert(binary_form=True))

    class Object(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            check(self.getpeercert(binary_form=True))

    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.sslsocket_class = Socket
    context.sslobject_class = Object
    return context
