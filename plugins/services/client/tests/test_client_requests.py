"""The client against a server that misbehaves: what is sent again, what is not, and how calls are numbered."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import finetooth
import pytest
from finetooth_client import CallFailed, ServerError
from finetooth_client.dialogues import Patience
from finetooth_hooks import Datum

Answer = tuple[int, Any] | None
"""Status and JSON; None closes the connection without one."""


class Scripted:
    """Answers requests with what a test wrote down, in order, and remembers them."""

    def __init__(self, answers: list[Answer]) -> None:
        self.answers, self.seen = answers, []  # type: ignore[var-annotated]
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                url = urlsplit(self.path)
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                query = {name: values[0] for name, values in parse_qs(url.query).items()}
                outer.seen.append((url.path, query, json.loads(body or b"null"), self.headers.get("Authorization")))
                answer = outer.answers.pop(0)
                if answer is None:
                    self.connection.close()
                    return
                content = json.dumps(answer[1]).encode()
                self.send_response(answer[0])
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST  # noqa: N815

            def log_message(self, *_: Any) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    made: list[Scripted] = []

    def make(*answers: Answer) -> Scripted:
        made.append(Scripted(list(answers)))
        return made[-1]

    yield make
    for one in made:
        one.server.shutdown()
        one.server.server_close()


def done(result: Any, state: str = "done") -> Answer:
    error = {"category": "user", "message": "no"} if state == "failed" else None
    return 202 if state == "queued" else 200, {"id": "c1", "state": state, "result": result, "error": error}


MADE = done({"model": "m", "parameters": 1, "trained": 1})
STEP = {"step": 1, "learning_rate": 0.1, "grad_norm": "inf", "skipped": True}


def test_a_lost_answer_is_asked_for_again_under_the_same_number(scripted: Callable[..., Scripted]) -> None:
    server = scripted(MADE, None, (503, {}), (429, {}), done(None, "queued"), None, done(STEP), done({}))
    with finetooth.Client(server.url, "ft_key", patience=20) as client:
        session = client.session("tiny")
        stepped = session.step()
        session.zero_grad()
    assert stepped.skipped and stepped.grad_norm == float("inf")
    posts = [(path.rpartition("/")[2], query.get("seq")) for path, query, _, _ in server.seen[1:]]
    assert posts == [("step", "1")] * 4 + [("c1", None)] * 2 + [("zero_grad", "2")]
    assert {key for *_, key in server.seen} == {"Bearer ft_key"}


def test_a_refused_call_leaves_no_gap_and_a_failed_one_keeps_its_number(scripted: Callable[..., Scripted]) -> None:
    server = scripted(MADE, (413, {"error": "too large"}), done(None, "failed"), done(STEP))
    with finetooth.Client(server.url) as client:
        session = client.session("tiny")
        with pytest.raises(ServerError, match="too large") as refused:
            session.forward_backward([Datum.from_tokens([1, 2, 3])])
        with pytest.raises(CallFailed, match="no") as failed:
            session.step()
        session.step()
    assert refused.value.status == 413 and failed.value.category == "user"
    assert [query["seq"] for _, query, _, _ in server.seen[1:]] == ["1", "1", "2"]


def test_patience_ends(scripted: Callable[..., Scripted]) -> None:
    server = scripted(*[(503, {"error": "busy"})] * 50)
    with finetooth.Client(server.url, patience=0.3) as client, pytest.raises(ServerError, match="503"):
        client.models()
    server.server.server_close()
    with (
        finetooth.Client("http://127.0.0.1:9", patience=0.2) as client,
        pytest.raises(ServerError, match="gave no answer"),
    ):
        client.models()


def test_a_server_that_is_waited_for_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    patience = Patience("http://server:8420", 300.0)
    pauses = [patience.pause(OSError("no such name")) for _ in range(9)]
    assert sum(pauses) > 10 and [record.getMessage() for record in caplog.records] == [
        "http://server:8420 does not answer (no such name); trying for up to 300 s more"
    ]


def test_importing_finetooth_brings_no_client() -> None:
    code = (
        "import finetooth, sys; print(any(m.startswith(('httpx', 'finetooth_client', 'numpy')) for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
    with pytest.raises(AttributeError, match="has no attribute 'Clint'"):
        _ = finetooth.Clint
