"""A hub that does not answer is asked once, quickly; one that does is left to its libraries."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest
from finetooth_toolbox.files import hub

constants: Any = pytest.importorskip("huggingface_hub.constants")


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if HF_HUB_OFFLINE were not set; nothing is known of any address."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_known", {})


@pytest.fixture
def answering() -> Iterator[tuple[str, list[str]]]:
    """The address of a server that knows nothing, and the requests it got."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def closed_address() -> str:
    """Of a port at which nobody listens."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_any_answer_is_reachable_and_asked_for_once(
    monkeypatch: pytest.MonkeyPatch, answering: tuple[str, list[str]]
) -> None:
    address, asked = answering
    monkeypatch.setattr(constants, "ENDPOINT", address)
    for _ in range(3):
        with hub.without_retries() as why:
            assert (why, constants.HF_HUB_OFFLINE) == ("", False)
    assert len(asked) == 1


def test_a_closed_port_puts_the_libraries_offline_while_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", closed_address())
    with pytest.raises(RuntimeError), hub.without_retries() as why:
        assert "refused" in why
        assert constants.HF_HUB_OFFLINE
        raise RuntimeError
    assert not constants.HF_HUB_OFFLINE


def test_a_server_that_accepts_and_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "WAIT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert hub.why_unreachable()


def test_who_wants_to_stay_offline_is_not_asked_for_anything(
    monkeypatch: pytest.MonkeyPatch, answering: tuple[str, list[str]]
) -> None:
    address, asked = answering
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with hub.without_retries() as why:
        assert (why, constants.HF_HUB_OFFLINE) == ("", True)
    assert constants.HF_HUB_OFFLINE
    assert hub.why_unreachable() == "HF_HUB_OFFLINE is set"
    assert asked == []
