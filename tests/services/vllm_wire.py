"""A stand-in for a vLLM server on the loopback, whose words come from a function: its documented routes, streams with
chunks of several tokens, refusals as vLLM writes them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Words = Callable[[str, Mapping[str, Any]], tuple[Sequence[int], Sequence[float], str]]
"""Model's folder or name and a request, to tokens, their log-probabilities, and why they end."""


class VllmWire:
    """The server.

    Args:
        words: what it answers.

    Attributes:
        asked: paths and bodies, in order.
        adapters: folder by name.
        scales: its log-probabilities follow the temperature.
        dies: chunks of a stream after which the connection ends.
        pause: seconds between chunks, so that what reads them has read each by itself.
        refuses: a status and a message for every request for completions.
        silent: it takes a request for completions that streams, and gives no token until this is cleared.
        lies: what its chunks say instead.
    """

    def __init__(self, words: Words, *, base: str = "served") -> None:
        self._words, self._base = words, base
        self.asked: list[tuple[str, Any]] = []
        self.adapters: dict[str, str] = {}
        self.scales, self.refuses = False, (0, "")
        self.dies: int | None = None
        self.key, self.pause = "", 0.0
        self.silent = False
        self.lies: dict[str, Any] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.silent = False
        self._server.shutdown()
        self._server.server_close()

    def bodies(self) -> list[Any]:
        """Of requests for completions that stream."""
        return [body for path, body in self.asked if path == "/v1/completions" and body.get("stream")]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        wire = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None: ...

            def do_GET(self) -> None:
                wire.answer(self, None)

            def do_POST(self) -> None:
                read = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                wire.answer(self, json.loads(read) if read else None)

        return Handler

    def answer(self, to: BaseHTTPRequestHandler, body: Any) -> None:
        self.asked.append((to.path, body))
        if self.key and to.headers.get("Authorization") != f"Bearer {self.key}":
            self._json(to, 401, {"error": "Unauthorized"})
        elif to.path == "/v1/models":
            own = [{"id": self._base, "parent": None, "max_model_len": 512}]
            self._json(to, 200, {"data": own + [{"id": one, "parent": self._base} for one in self.adapters]})
        elif to.path == "/v1/load_lora_adapter":
            if (Path(body["lora_path"]) / "adapter_config.json").is_file():
                self.adapters[body["lora_name"]] = body["lora_path"]
                self._json(to, 200, None)
            else:
                self._json(to, 404, {"error": {"message": f"No adapter found for {body['lora_path']}"}})
        elif self.refuses[0]:
            self._json(to, self.refuses[0], {"error": {"message": self.refuses[1], "type": "BadRequestError"}})
        elif body.get("stream"):
            self._stream(to, body)
        else:
            self._json(to, 200, {"model": body["model"], "choices": [self._probe(body)]})

    def _probe(self, body: Any) -> Any:
        score = -1.0 / (body["temperature"] if self.scales else 1.0)
        return {
            "index": 0,
            "text": "",
            "finish_reason": "length",
            "logprobs": {"top_logprobs": [{"token_id:0": score}]},
        }

    def _stream(self, to: BaseHTTPRequestHandler, body: Any) -> None:
        tokens, scores, why = self._words(self.adapters.get(body["model"], body["model"]), body)
        to.send_response(200)
        to.send_header("Content-Type", "text/event-stream")
        to.send_header("Connection", "close")
        to.end_headers()
        to.close_connection = True
        while self.silent:
            time.sleep(0.02)
        starts = range(0, len(tokens), 3)
        for n, start in enumerate(starts):
            if n == self.dies:
                return
            part = slice(start, start + 3)
            choice = {
                "index": 0, "text": "x", "token_ids": list(tokens[part]), "finish_reason": None,
                "logprobs": {"token_logprobs": list(scores[part]), "tokens": [], "top_logprobs": None},
            }  # fmt: skip
            if n == len(starts) - 1 and why == "length":  # vLLM says why with the last tokens, or after them
                choice["finish_reason"] = why
            self._event(to, {"model": body["model"], "choices": [choice | self.lies]})
        if why != "length":
            last = {"index": 0, "text": "", "token_ids": [], "logprobs": None, "finish_reason": why}
            self._event(to, {"model": body["model"], "choices": [last]})
        to.wfile.write(b"data: [DONE]\n\n")

    def _event(self, to: BaseHTTPRequestHandler, content: Any) -> None:
        to.wfile.write(f"data: {json.dumps(content)}\n\n".encode())
        to.wfile.flush()
        time.sleep(self.pause)

    @staticmethod
    def _json(to: BaseHTTPRequestHandler, status: int, content: Any) -> None:
        data = b"" if content is None else json.dumps(content).encode()
        to.send_response(status)
        to.send_header("Content-Length", str(len(data)))
        to.end_headers()
        to.wfile.write(data)
