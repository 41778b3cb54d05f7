"""A hub on loopback: enough of the Hugging Face hub for its real clients to list and read one dataset, `org/rows`.

    with serving(HubStandIn({"data/train-00000.jsonl": b"..."})) as hub:
        environment = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", ...}

Clients take the hub's address when they are imported, so the client is a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40


class HubStandIn:
    """What it serves, and what was asked of it.

    Attributes:
        sent: bytes of files that went out.
        asked: paths, in order.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.sent = 0
        self.asked: list[str] = []
        self.address = ""

    def entries(self, folder: str = "", recursive: bool = True) -> list[dict[str, object]]:
        """What is in a folder of the repository, as the hub lists it."""
        inside = f"{folder}/" if folder else ""
        by_path: dict[str, dict[str, object]] = {}
        for name, body in sorted(self.files.items()):
            if not name.startswith(inside):
                continue
            top, deeper, _ = name.removeprefix(inside).partition("/")
            if deeper:
                place = inside + top
                by_path[place] = {"type": "directory", "path": place, "size": 0, "oid": _digest(place.encode())}
            if not deeper or recursive:
                by_path[name] = {"type": "file", "path": name, "size": len(body), "oid": _digest(body)}
        return list(by_path.values())


def _digest(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()


class HubServer(ThreadingHTTPServer):
    """A server at a free port of loopback, of one hub."""

    daemon_threads = True

    def __init__(self, hub: HubStandIn) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.hub = hub


class HubHandler(BaseHTTPRequestHandler):
    """What the hub answers; it is `hub` of the server."""

    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            try:
                self.wfile.write(body)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        self.server.hub.asked.append(f"POST {self.path}")
        wanted = body.get("paths", [])
        entries = [entry for entry in self.server.hub.entries() if entry["path"] in wanted]
        self._answer(200, json.dumps(entries).encode(), Content_Type="application/json")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.hub.asked.append(f"{self.command} {path}")
        if file := re.fullmatch(r"/datasets/org/rows/resolve/[^/]+/(.+)", path):
            self._file(file[1])
        elif re.fullmatch(r"/api/datasets/org/rows(/revision/[^/]+)?", path):
            names = [{"rfilename": name} for name in sorted(self.server.hub.files)]
            info = {
                "id": "org/rows",
                "sha": COMMIT,
                "private": False,
                "siblings": names,
                "tags": [],
                "gated": False,
            }
            self._answer(200, json.dumps(info).encode(), Content_Type="application/json")
        elif tree := re.fullmatch(r"/api/datasets/org/rows/tree/[^/]+(/(.*))?", path):
            listed = self.server.hub.entries(tree[2] or "", "recursive=true" in self.path.lower())
            self._answer(200, json.dumps(listed).encode(), Content_Type="application/json")
        else:
            self._answer(404, b"{}", X_Error_Code="EntryNotFound")

    def _file(self, name: str) -> None:
        body = self.server.hub.files.get(name)
        if body is None:
            self._answer(404, b"", X_Error_Code="EntryNotFound")
            return
        known = {"ETag": f'"{_digest(body)}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part is None:
            status, sent = 200, body
        else:
            start, stop = int(part[1]), int(part[2] or len(body) - 1) + 1
            status, sent = 206, body[start:stop]
            known["Content_Range"] = f"bytes {start}-{start + len(sent) - 1}/{len(body)}"
        if self.command == "GET":
            self.server.hub.sent += len(sent)
        self._answer(status, sent, **known)


@contextmanager
def serving(hub: HubStandIn) -> Iterator[HubStandIn]:
    """The hub at a free port of loopback."""
    server = HubServer(hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


__all__ = ["COMMIT", "HubStandIn", "serving"]
