"""A web server on loopback that behaves as a test says, and an S3 server."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest


@dataclass
class Web:
    """Files by path, and what goes wrong on the way.

    Attributes:
        statuses: by path, answered one after another before the file is.
        cuts: by path, how many transfers end half-way.
        seen: method and path of each request.
        etags: whether the server says which version a file has.
        asked: headers of the last request.
    """

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    statuses: dict[str, list[int]] = field(default_factory=dict)
    cuts: dict[str, int] = field(default_factory=dict)
    seen: list[tuple[str, str]] = field(default_factory=list)
    etags: bool = True
    asked: dict[str, str] = field(default_factory=dict)

    def transfers(self, path: str) -> int:
        """How often a file was asked for."""
        return self.seen.count(("GET", path))


@pytest.fixture
def web() -> Iterator[Web]:
    """A server that runs as long as the test."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            here.seen.append((self.command, path))
            here.asked = dict(self.headers)
            waiting = here.statuses.get(path)
            content = here.files.get(path)
            status = waiting.pop(0) if waiting else (200 if content is not None else 404)
            content = content if status == 200 and content is not None else b"no"
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            if status == 200 and here.etags:
                self.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
            self.end_headers()
            if body and status == 200 and here.cuts.get(path, 0) > 0:
                here.cuts[path] -= 1
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
            elif body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    here = Web(f"http://127.0.0.1:{server.server_address[1]}")
    thread = Thread(target=lambda: server.serve_forever(0.02), daemon=True)
    thread.start()
    yield here
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3 server in a process of its own; credentials for it are in the environment."""
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    beside = Path(sys.executable).with_name("moto_server")
    program = str(beside) if beside.is_file() else shutil.which("moto_server")
    if program is None:
        pytest.skip("moto is not installed, which is the S3 server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing-key",
        "AWS_SECRET_ACCESS_KEY": "testing-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    said = tmp_path_factory.mktemp("s3") / "log"
    with said.open("wb") as log, pytest.MonkeyPatch.context() as patch:
        process = subprocess.Popen([program, "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log)
        try:
            _wait(f"{given['AWS_ENDPOINT_URL']}/moto-api/", process)
            for name, value in given.items():
                patch.setenv(name, value)
            patch.setenv("AWS_CONFIG_FILE", os.devnull)
            yield given["AWS_ENDPOINT_URL"]
        finally:
            process.terminate()
            process.wait()


def _wait(address: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        if process.poll() is not None:
            pytest.skip(f"moto_server ended with exit code {process.returncode}")
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    pytest.skip("moto_server did not answer")
