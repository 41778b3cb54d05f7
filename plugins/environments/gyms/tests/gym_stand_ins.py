"""Servers with the interfaces of NeMo Gym's, and turns for them."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from finetooth_gyms.nemogym import NemoGym, NemoGymOptions
from finetooth_hooks import Message, Turn
from finetooth_kit.fake_context import FakeContext


def turn(text: str, *calls: tuple[str, Any], stop: Any = "stop") -> Turn:
    made = tuple({"id": "", "function": {"name": name, "arguments": given}} for name, given in calls)
    return Turn(tuple(text.encode()), text, Message("assistant", text, tool_calls=made), stop)


class ResourceServer:
    """A counter: the tool `add` adds to the session's number, the judge compares it with the row's `target`."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.sessions: dict[str, int] = {}
        self.broken = ""
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None: ...

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append((self.path, body))
                session = (self.headers.get("Cookie") or "").removeprefix("session=")
                status, content = (500, {"detail": "broken"}) if self.path == server.broken else (200, None)
                if content is None:
                    content = server.answer(self.path, body, session)
                data = json.dumps(content).encode()
                self.send_response(status)
                if self.path == "/seed_session":
                    self.send_header("Set-Cookie", f"session={len(server.sessions)}; Path=/")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, path: str, body: Any, session: str) -> Any:
        if path == "/seed_session":
            self.sessions[str(len(self.sessions) + 1)] = 0
            return {}
        if path == "/add":
            self.sessions[session] += body["number"]
            return {"total": self.sessions[session]}
        return {"reward": float(self.sessions[session] == body["target"]), "response": body["response"]}


ADD = {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {"number": {}}}}
ROW: dict[str, Any] = {
    "responses_create_params": {"input": [{"role": "user", "content": "Reach 5."}], "tools": [ADD]},
    "target": 5,
}


def nemogym(tmp_path: Path, **options: Any) -> NemoGym:
    return NemoGym(NemoGymOptions(**options), FakeContext(tmp_path))
