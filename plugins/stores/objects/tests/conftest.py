"""moto's S3 server in a process of its own, and between it and the store a proxy that does what networks do."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import boto3
import pytest
from finetooth_objects.options import S3Options
from finetooth_objects.store import ObjectStore, build

PART = 64 * 1024
ERROR = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{0}</Code><Message>{0} by the proxy</Message></Error>"
CODES = {500: "InternalError", 503: "SlowDown", 400: "BadDigest", 501: "NotImplemented", 403: "AccessDenied"}


@dataclass(frozen=True)
class Seen:
    """A request that came to the proxy."""

    method: str
    key: str
    query: dict[str, str]
    body: int
    range: str

    @property
    def what(self) -> str:
        """`part 3`, `begin`, `complete`, `abort`, `list parts`, `list uploads`, `list`, or the method: `put`."""
        if "partNumber" in self.query:
            return f"part {self.query['partNumber']}"
        if "uploadId" in self.query:
            return {"POST": "complete", "GET": "list parts", "DELETE": "abort"}[self.method]
        if "uploads" in self.query:
            return {"POST": "begin", "GET": "list uploads"}[self.method]
        return "list" if "list-type" in self.query else self.method.lower()


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that fit.

    `kind` is a status, or: `reset` (before it is answered), `lost` (done, but not answered), `hang` (no answer), `cut`
    (in the middle of the request's body), `short` (the answer ends early), `shorter` (and says so), `wrong` (a bit of
    the body is flipped, on the way there or back), `slow` (in small pieces).
    """

    kind: int | str
    fits: Callable[[Seen], bool]
    times: int = 1


@dataclass
class Proxy:
    """Between a store and its server.

    Attributes:
        verifies: compare bodies with their checksum, as S3 does and moto does not.
        mismatch: the code with which it refuses those that differ.
        mute: give no checksums.
        refuses: take no checksums, and answer with this code.
        down: reset every connection.
        page: entries on a page of a list; 0 is as many as the server gives.
        seen: requests that came, in order.
        on: called with each request before it is forwarded.
    """

    server: str
    address: str = ""
    verifies: bool = False
    mismatch: str = "BadDigest"
    mute: bool = False
    refuses: str = ""
    down: bool = False
    page: int = 0
    faults: list[Fault] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    on: Callable[[Seen], None] = lambda seen: None
    released: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, kind: int | str, what: str, key: str = "", times: int = 1) -> Fault:
        """Let something go wrong with requests of this kind, by `Seen.what`."""
        fault = Fault(kind, lambda seen: seen.what.startswith(what) and seen.key.endswith(key), times)
        self.faults.append(fault)
        return fault

    def fault_of(self, seen: Seen) -> int | str | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.fits(seen):
                    fault.times -= 1
                    return fault.kind
        return None

    def count(self, what: str, key: str = "") -> int:
        """How many such requests came."""
        return sum(seen.what.startswith(what) and seen.key.endswith(key) for seen in self.seen)


def handler_for(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_any(self) -> None:
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
            length = int(self.headers.get("Content-Length") or 0)
            key = unquote(url.path).partition("/")[2].partition("/")[2] or query.get("prefix", "")
            seen = Seen(self.command, key, query, length, self.headers.get("Range", ""))
            with proxy.lock:
                proxy.seen.append(seen)
            proxy.on(seen)
            fault = proxy.fault_of(seen)
            if proxy.down or fault == "reset":
                return self.reset()
            if "100-continue" in self.headers.get("Expect", "").lower():
                pass  # http.server has answered it
            if fault == "cut":
                self.rfile.read(length // 2)
                return self.reset()
            body = self.rfile.read(length)
            if isinstance(fault, int):
                return self.refuse(fault)
            if fault == "wrong" and body:
                body = flipped(body)
            given = self.headers.get("x-amz-checksum-sha256")
            if given and proxy.refuses:
                return self.refuse(501 if proxy.refuses == "NotImplemented" else 400, proxy.refuses)
            if given and proxy.verifies and given != checksum(body) and self.command == "PUT":
                return self.refuse(400, proxy.mismatch)
            self.forward(body, fault)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815

        def forward(self, body: bytes, fault: int | str | None) -> None:
            connection = HTTPConnection(urlsplit(proxy.server).netloc, timeout=30)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
            path = self.path
            if proxy.page and self.command == "GET" and PAGED.search(path):
                path += "".join(f"&max-{of}={proxy.page}" for of in ("keys", "uploads", "parts"))
            connection.request(self.command, path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            headers = {name.title(): value for name, value in answer.getheaders() if name.lower() not in HOP}
            connection.close()
            if fault == "lost":
                return self.reset()
            if fault == "hang":
                proxy.released.wait(20)
                return self.reset()
            if fault == "wrong" and self.command == "GET":
                content = flipped(content)
            if fault == "shorter":
                content = content[: len(content) // 2]
                headers["Content-Length"] = str(len(content))
            self.answer(answer.status, headers, content, fault)

        def answer(self, status: int, headers: dict[str, str], content: bytes, fault: int | str | None) -> None:
            self.send_response(status)
            length = headers.pop("Content-Length", str(len(content)))
            for name, value in headers.items():
                if not (proxy.mute and name.lower().startswith("x-amz-checksum")):
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command == "HEAD":
                return
            if fault == "slow":
                for start in range(0, len(content), max(1, len(content) // 5)):
                    self.wfile.write(content[start : start + max(1, len(content) // 5)])
                    self.wfile.flush()
                    time.sleep(0.02)
            elif fault == "short":
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                self.close_connection = True
            else:
                self.wfile.write(content)

        def refuse(self, status: int, code: str = "") -> None:
            content = ERROR.format(code or CODES[status]).encode()
            self.answer(status, {"Content-Type": "application/xml"}, content, None)

        def reset(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True

        def handle(self) -> None:
            try:
                super().handle()
            except (OSError, ValueError):  # the client has gone, or we have closed the connection
                self.close_connection = True

        def finish(self) -> None:
            with suppress(OSError, ValueError):
                super().finish()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


PAGED = re.compile("list-type=|uploads|uploadId=")
HOP = {"connection", "transfer-encoding", "keep-alive", "date", "server"}


def flipped(body: bytes) -> bytes:
    """With one bit of the middle byte the other way."""
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


def checksum(body: bytes) -> str:
    return base64.b64encode(hashlib.sha256(body).digest()).decode()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of moto's server, which takes parts of any size; credentials for it are in the environment."""
    beside = Path(sys.executable).with_name("moto_server")
    program = str(beside) if beside.is_file() else shutil.which("moto_server")
    if program is None:
        pytest.skip("moto is not installed, which is the S3 server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = tmp_path_factory.mktemp("s3") / "log"
    address = f"http://127.0.0.1:{port}"
    with said.open("wb") as log, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing-key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing-secret")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_REGION", "AWS_ENDPOINT_URL"):
            patch.delenv(name, raising=False)
        process = subprocess.Popen(
            [program, "-H", "127.0.0.1", "-p", str(port)],
            stdout=log,
            stderr=log,
            env={**os.environ, "S3_UPLOAD_PART_MIN_SIZE": "1"},
        )
        try:
            for _ in range(300):
                if process.poll() is not None:
                    pytest.skip(f"moto_server ended with exit code {process.returncode}")
                try:
                    with urllib.request.urlopen(f"{address}/moto-api/", timeout=5):
                        break
                except OSError:
                    time.sleep(0.1)
            yield address
        finally:
            process.terminate()
            process.wait()


@pytest.fixture
def s3(moto: str) -> Any:
    """boto3's own client, straight to the server, with an empty bucket `kept`: what the tests believe."""
    with urllib.request.urlopen(urllib.request.Request(f"{moto}/moto-api/reset", method="POST"), timeout=5):
        pass
    client = boto3.client("s3", endpoint_url=moto, region_name="us-east-1")
    client.create_bucket(Bucket="kept")
    return client


@pytest.fixture
def proxy(moto: str, s3: Any) -> Iterator[Proxy]:
    """Between the store and the server."""
    here = Proxy(moto)
    server = Server(("127.0.0.1", 0), handler_for(here))
    here.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True)
    thread.start()
    yield here
    here.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def store(proxy: Proxy) -> Callable[..., ObjectStore]:
    """Makes stores behind the proxy."""

    def make(**options: Any) -> ObjectStore:
        given = {"url": "s3://kept/runs/one", "endpoint": proxy.address, "part_bytes": PART, "wait": 0.01, "retries": 3}
        return build(S3Options(**{**given, "timeout": 5.0, **options}))  # type: ignore[arg-type]

    return make


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Writes a whole checkpoint, different for each seed."""

    def make(seed: int = 0, size: int = 4 * PART + 100, name: str = "made") -> Path:
        folder = tmp_path / f"{name}-{seed}"
        (folder / "engine").mkdir(parents=True)
        (folder / "engine/trained.safetensors").write_bytes(hashlib.shake_128(bytes([seed])).digest(size))
        (folder / "state.json").write_text(json.dumps({"step": seed}))
        (folder / "history.jsonl").write_text("")
        files = {
            path.relative_to(folder).as_posix(): {
                "size": path.stat().st_size,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        (folder / "manifest.json").write_text(json.dumps({"files": files}))
        return folder

    return make


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by path."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def kept_in(s3: Any) -> Callable[[str], dict[str, bytes]]:
    """What the server holds under a prefix, asked without the store."""

    def read(prefix: str) -> dict[str, bytes]:
        found = s3.list_objects_v2(Bucket="kept", Prefix=prefix).get("Contents", [])
        return {o["Key"].removeprefix(prefix): s3.get_object(Bucket="kept", Key=o["Key"])["Body"].read() for o in found}

    return read


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Every file of a folder by path."""
    return content_of
