"""Common code of serving commands: TLS options, allowed addresses, and the listening socket."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from finetooth_hooks import UserError

if TYPE_CHECKING:
    from finetooth_wire.tls import Certificate

SLOWEST = 20.0
"""Seconds that a peer has for taking a part of an answer; a server gives a request's body as long."""
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
OPTIONS = (
    click.option("--certificate", type=FILE, help="TLS certificate."),
    click.option("--certificate-key", type=FILE, help="Private key of the certificate."),
    click.option("--tls", type=click.Choice(["generated"]), help="Make a certificate for a trial, keep it in the "
                 "folder, and print its fingerprint, which clients pin."),
    click.option("--without-tls", is_flag=True, help="Let others reach the server although keys and data then travel "
                 "in the clear; for a network that is encrypted itself."),
)  # fmt: skip


def tls_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command with the options of TLS, which `Tls` takes."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class Tls:
    """What a command was given for TLS: a certificate with its key, one to be made, or the word that none is wanted.

    Raises:
        UserError: two certificates, or half of one.
    """

    certificate: Path | None = None
    certificate_key: Path | None = None
    tls: str | None = None
    without_tls: bool = False

    def __post_init__(self) -> None:
        if self.tls is not None and (self.certificate or self.certificate_key):
            raise UserError("--tls generated and --certificate: two certificates", action="give one of them")
        if (self.certificate is None) != (self.certificate_key is None):
            raise UserError("--certificate and --certificate-key belong together", action="give both")

    def check(self, host: str) -> None:
        """Refuse to serve an address that other machines can reach without encryption.

        Raises:
            UserError: nothing was given.
        """
        if not (self.tls or self.certificate or self.without_tls):
            raise UserError(
                f"--host {host} can be reached by others, and keys and data would travel in the clear",
                action="give --certificate and --certificate-key, or --tls generated, or --without-tls",
            )

    def shown(self, folder: Path, host: str) -> Certificate | None:
        """The certificate to show to clients; None without TLS.

        Args:
            folder: where a generated one is kept.
            host: the address that the server listens on.

        Raises:
            UserError: the file holds no certificate, or the generated one has expired.
        """
        from finetooth_wire.tls import Certificate, generated

        if self.tls is not None:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return generated(folder, host)
        if self.certificate is None or self.certificate_key is None:
            return None
        certificate = Certificate(self.certificate, self.certificate_key)
        _ = certificate.fingerprint
        return certificate


def address_of(host: str, listening: socket.socket, certificate: Certificate | None) -> str:
    """The URL at which clients reach a socket."""
    from finetooth_wire.tls import reached_as

    name = reached_as(host)
    scheme = "http" if certificate is None else "https"
    return f"{scheme}://{f'[{name}]' if ':' in name else name}:{listening.getsockname()[1]}"


def uvicorn_options(certificate: Certificate | None) -> dict[str, Any]:
    """The options of a uvicorn configuration that shows a certificate."""
    return {} if certificate is None else {"ssl_certfile": str(certificate.file), "ssl_keyfile": str(certificate.key)}


def tell_certificate(certificate: Certificate | None) -> None:
    """Print the facts of a certificate that clients need."""
    if certificate is not None:
        click.echo(f"certificate {certificate.file}, fingerprint {certificate.fingerprint}")
        if certificate.by_itself:
            click.echo("clients trust it by a copy of that file: SSL_CERT_FILE=certificate.pem, or curl --cacert")


def listen(host: str, port: int) -> socket.socket:
    """Opens a socket that listens on the address.

    Raises:
        UserError: the address or the port cannot be bound.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # the protocol by its number: asyncio turns Nagle's algorithm off only where it stands, and an answer would wait
        # 40 ms for the client's delayed acknowledgement
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # connections inherit it: who takes no bytes for so long is cut off
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * SLOWEST))
        listening.bind(address)
    except OSError as error:
        raise UserError(f"{host}:{port}: {error.strerror}", action="choose another --host or --port") from error
    return listening
