"""Addresses where nobody answers: a mistake in one, or a machine without a network, is said within seconds."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from finetooth_hooks import DataError
from finetooth_kit import FakeContext
from finetooth_remote import download
from finetooth_remote.source import RemoteOptions, build

pytest.importorskip("aiohttp", reason="aiohttp is not installed")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were to be waited between attempts."""
    found: list[float] = []
    monkeypatch.setattr(download.time, "sleep", found.append)
    return found


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def refusal(folder: Path, address: str) -> str:
    with pytest.raises(DataError) as raised:
        build(RemoteOptions(path=address), FakeContext(folder, installed=True))
    return str(raised.value)


def test_nobody_listens(tmp_path: Path, waits: list[float]) -> None:
    said = refusal(tmp_path, f"http://127.0.0.1:{closed_port()}/train.jsonl")
    assert "the server cannot be reached (" in said and "check the address and the network" in said
    assert len(waits) == 1  # tried once more, not as often as where a server fails for a moment


def test_no_such_name(tmp_path: Path, waits: list[float]) -> None:
    said = refusal(tmp_path, "https://nowhere.invalid/train.jsonl")  # a name that never resolves: RFC 6761, 6.4
    assert "the server cannot be reached (" in said
    assert len(waits) == 1


def test_a_certificate_that_nobody_signed(tmp_path: Path, waits: list[float]) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    secured = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    secured.load_cert_chain(certificate, key)
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        server.socket = secured.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        said = refusal(tmp_path, f"https://127.0.0.1:{server.server_address[1]}/train.jsonl")
        server.shutdown()
    assert "the server's certificate is not trusted" in said and "SSL_CERT_FILE" in said
    assert not waits  # trying again would not help


def test_an_endpoint_of_s3_where_nobody_listens(
    tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """botocore waits between tries of its own, which each of ours would multiply."""
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    httpsession = pytest.importorskip("aiobotocore.httpsession")
    sent: list[str] = []
    send = httpsession.AIOHTTPSession.send

    async def counted(self: object, request: object) -> object:
        sent.append(str(request))
        return await send(self, request)

    monkeypatch.setattr(httpsession.AIOHTTPSession, "send", counted)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port()}")
    said = refusal(tmp_path, "s3://bucket/train.jsonl")
    assert "the server cannot be reached (" in said
    assert len(waits) == 1
    assert 2 <= len(sent) <= 6  # a few requests for each of the two attempts; with botocore's own tries it is 20 more
