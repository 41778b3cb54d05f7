"""A certificate of the server's own, for a trial: made once, kept in its folder, known by its fingerprint."""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from finetooth_hooks import UserError

DAYS = 365
"""For which a generated certificate holds."""
EVERYWHERE = ("0.0.0.0", "::")
"""Hosts that mean every address of this machine, and that no client can be given."""


def reached_as(host: str) -> str:
    """A server's name for other machines: this machine's name if it listens on every address."""
    return socket.gethostname() if host in EVERYWHERE else host


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, as PEM files."""

    file: Path
    key: Path

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, in hexadecimal digits; clients pin it.

        Raises:
            UserError: the file holds no certificate.
        """
        try:
            return x509.load_pem_x509_certificate(self.file.read_bytes()).fingerprint(hashes.SHA256()).hex()
        except (OSError, ValueError) as error:
            raise UserError(f"{self.file}: it holds no certificate", action="give a PEM file") from error

    @property
    def by_itself(self) -> bool:
        """Whether it signs itself, so that nobody trusts it who was not given it."""
        read = x509.load_pem_x509_certificate(self.file.read_bytes())
        return read.issuer == read.subject


def generated(folder: Path, host: str) -> Certificate:
    """The certificate in a server's folder, made if there is none. It signs itself, so nobody trusts it who does not
    know its fingerprint.

    Args:
        host: the address that the server listens on; the certificate also names this machine.

    Raises:
        UserError: the one that is there has expired, or is none.
    """
    certificate = Certificate(folder / "tls" / "certificate.pem", folder / "tls" / "key.pem")
    if not certificate.file.exists():
        _make(certificate, host)
    _ = certificate.fingerprint
    end = x509.load_pem_x509_certificate(certificate.file.read_bytes()).not_valid_after_utc
    if end < datetime.datetime.now(datetime.UTC):
        raise UserError(
            f"{certificate.file}: it expired on {end:%Y-%m-%d}",
            action=f"remove {certificate.file.parent} to get another one, and tell its clients the new fingerprint",
        )
    return certificate


def _make(certificate: Certificate, host: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "finetooth server")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName(_names(host)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate.key.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    certificate.key.unlink(missing_ok=True)
    with os.fdopen(os.open(certificate.key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
    certificate.file.write_bytes(made.public_bytes(serialization.Encoding.PEM))


def _names(host: str) -> list[x509.GeneralName]:
    """Names that clients may use for the server."""
    names: list[x509.GeneralName] = []
    others = _outwards() if host in EVERYWHERE else []
    for name in dict.fromkeys(("localhost", "127.0.0.1", "::1", socket.gethostname(), host, *others)):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            names.append(x509.DNSName(name))
    return names


def _outwards() -> list[str]:
    """The addresses that this machine has towards others; nothing is sent to find them."""
    addresses = []
    for family, away in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):  # of nobody
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as asking:
                asking.connect((away, 9))
                addresses.append(str(asking.getsockname()[0]))
        except OSError:  # no such network here
            continue
    return addresses
