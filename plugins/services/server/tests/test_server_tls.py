"""TLS with a certificate of the server's own: who pins it reaches that server, and no other gets to see a key."""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
import ssl
import stat
import subprocess
from pathlib import Path
from typing import Any

import finetooth
import pytest
from cryptography import x509
from finetooth_client import ServerError
from finetooth_hooks import UserError
from finetooth_server.settings import Settings
from finetooth_wire.tls import Certificate, generated, reached_as


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return generated(tmp_path_factory.mktemp("tls"), "127.0.0.1")


@pytest.fixture(scope="module")
def served(serve: Any, recipe: dict[str, Any], certificate: Certificate, tmp_path_factory: Any) -> Any:
    settings = Settings(tmp_path_factory.mktemp("served") / "server", {"tiny": recipe}, keyless=True)
    return serve(settings, certificate=certificate)


def test_the_certificate_is_kept_and_its_fingerprint_is_the_standard_one(certificate: Certificate) -> None:
    folder = certificate.file.parents[1]
    assert generated(folder, "127.0.0.1") == certificate
    der = ssl.PEM_cert_to_DER_cert(certificate.file.read_text())
    assert certificate.fingerprint == hashlib.sha256(der).hexdigest()
    assert stat.S_IMODE(certificate.key.stat().st_mode) == 0o600
    said = subprocess.run(["openssl", "x509", "-in", str(certificate.file), "-noout", "-ext", "subjectAltName"],
                          capture_output=True, text=True)  # fmt: skip
    assert "IP Address:127.0.0.1" in said.stdout and "DNS:localhost" in said.stdout
    certificate.file.with_name("other.pem").write_text("x")
    with pytest.raises(UserError, match="it holds no certificate"):
        _ = Certificate(certificate.file.with_name("other.pem"), certificate.key).fingerprint


def test_a_server_on_every_address_is_called_as_others_can_reach_it(tmp_path: Path) -> None:
    """`ip` says independently which addresses others see; a client that has the file trusts each of them."""
    assert (reached_as("0.0.0.0"), reached_as("::")) == (socket.gethostname(),) * 2
    assert reached_as("10.1.2.3") == "10.1.2.3"
    made = generated(tmp_path, "0.0.0.0")
    assert made.by_itself
    names = x509.load_pem_x509_certificate(made.file.read_bytes()).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert socket.gethostname() in names.value.get_values_for_type(x509.DNSName)
    told = {str(one) for one in names.value.get_values_for_type(x509.IPAddress)}
    route = subprocess.run(["ip", "-4", "route", "get", "192.0.2.1"], capture_output=True, text=True).stdout
    for source in re.findall(r"src (\S+)", route):
        assert source in told


def test_a_pinned_client_reaches_the_server(served: Any, certificate: Certificate) -> None:
    digits = certificate.fingerprint
    written = ":".join(digits[n : n + 2] for n in range(0, 64, 2)).upper()
    for trusted in ({"fingerprint": digits}, {"fingerprint": written}, {"verify": str(certificate.file)}):
        with finetooth.Client(served.url, patience=5, **trusted) as client:
            assert client.models() == ["tiny"]

    async def main() -> list[str]:
        async with finetooth.AsyncClient(served.url, patience=5, fingerprint=digits) as client:
            return await client.models()

    assert asyncio.run(main()) == ["tiny"]


def test_another_certificate_is_refused_at_once_and_nothing_is_sent(served: Any, certificate: Certificate) -> None:
    wrong = "0" * 64
    record = served.service.settings.folder / "audit.jsonl"
    before = record.read_text()
    for trusted in ({}, {"fingerprint": wrong}):
        with (
            finetooth.Client(served.url, "ft_secret_key", patience=600, **trusted) as client,
            pytest.raises(ServerError, match="certificate") as caught,
        ):
            client.models()
        assert "\n" not in str(caught.value)

    async def main() -> None:
        async with finetooth.AsyncClient(served.url, "ft_secret_key", patience=600, fingerprint=wrong) as client:
            await client.models()

    with pytest.raises(ServerError, match="another fingerprint"):
        asyncio.run(main())
    assert record.read_text() == before
    with pytest.raises(UserError, match="not a SHA-256"):
        finetooth.Client(served.url, fingerprint="abc")
    with pytest.raises(UserError, match="holds no certificate"):
        finetooth.Client(served.url, verify=str(Path(__file__).with_name("none.pem")))


@pytest.mark.slow
def test_ft_serve_prints_the_fingerprint_and_keeps_the_certificate(tiny: Path, tmp_path: Path, killable: Any) -> None:
    server = killable(tiny, tmp_path, "api", more=["--tls", "generated"])
    for _ in range(2):
        fingerprint = re.findall(r"fingerprint ([0-9a-f]{64})$", server.log.read_text(), re.M)[-1]
        with finetooth.Client(server.url, patience=5, fingerprint=fingerprint) as client:
            assert client.models() == [str(tiny)]
        server.kill()
        server.start()
    assert len(set(re.findall(r"fingerprint (\w+)", server.log.read_text()))) == 1
