"""Streams that break off: the client asks again, and tells no token twice."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import finetooth
import pytest
from finetooth_client import ServerError
from finetooth_hooks import Sampling

CALL = {"id": "c1", "session": "s1", "seq": 1, "operation": "sample", "error": None}
WHOLE = {"tokens": [5, 6, 7, 8], "logprobs": [-1.0, -2.0, -3.0, -4.0], "text": "abcd", "stop": "length",
         "weights_version": 0}  # fmt: skip


def tokens(index: int, *ids: int) -> str:
    text = "".join(".....abcd"[number] for number in ids)
    given = {"completion": 0, "index": index, "tokens": ids, "logprobs": [-float(n - 4) for n in ids], "text": text}
    return f": still waiting\n\nevent: tokens\ndata: {json.dumps(given)}\n\n"


END = f"event: end\ndata: {json.dumps({**CALL, 'state': 'done', 'result': {'completions': [WHOLE]}})}\n\n"
BROKEN = [tokens(0, 5, 6), 503, tokens(0, 5) + tokens(1, 6, 7), None, tokens(0, 5, 6, 7) + tokens(3, 8) + END]
"""A connection that ends, a refusal, another beginning that overlaps, no answer at all, and all of it."""


@pytest.fixture
def broken() -> Iterator[Callable[[list[Any]], str]]:
    servers: list[HTTPServer] = []

    def make(streams: list[Any]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                made = {"id": "m", "base": "b"} if self.path.endswith("/samplers") else {**CALL, "state": "queued"}
                self._answer(200, "application/json", json.dumps(made))

            def do_GET(self) -> None:
                given = streams.pop(0)
                if given is None:
                    self.connection.close()
                elif isinstance(given, int):
                    self._answer(given, "application/json", '{"error": "not now"}')
                else:
                    self._answer(200, "text/event-stream", given, whole=END in given)

            def _answer(self, status: int, kind: str, text: str, *, whole: bool = True) -> None:
                content = text.encode()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content) + (not whole)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None: ...

        servers.append(HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


def check(pieces: list[Any], completions: Any) -> None:
    assert [token for piece in pieces for token in piece.tokens] == [5, 6, 7, 8]
    assert [value for piece in pieces for value in piece.logprobs] == [-1.0, -2.0, -3.0, -4.0]
    assert [piece.index for piece in pieces] == [0, 2, 3]
    assert [one.text for one in completions] == ["abcd"]


def test_a_broken_stream_goes_on(broken: Any) -> None:
    with finetooth.Client(broken(list(BROKEN)), patience=10) as client:
        stream = client.sampler("b").stream([1], Sampling(max_tokens=4))
        check(list(stream), stream.completions)


def test_a_broken_stream_goes_on_for_asyncio(broken: Any) -> None:
    async def main() -> Any:
        async with finetooth.AsyncClient(broken(list(BROKEN)), patience=10) as client:
            stream = (await client.sampler("b")).stream([1], Sampling(max_tokens=4))
            return [piece async for piece in stream], stream.completions

    check(*asyncio.run(main()))


def test_a_refusal_ends_a_stream_and_patience_too(broken: Any) -> None:
    for streams, status in (([tokens(0, 5), 404], 404), ([503] * 50, 503)):
        with finetooth.Client(broken(streams), patience=0.3) as client, pytest.raises(ServerError) as caught:
            list(client.sampler("b").stream([1], Sampling(max_tokens=4)))
        assert caught.value.status == status
