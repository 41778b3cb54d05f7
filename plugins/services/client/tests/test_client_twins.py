"""The sync and the async client say the same: each method's requests are compared, one by one, with what the route
table of the service asks for, and with those of its twin."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

import finetooth
import finetooth_client
import numpy as np
import pytest
from finetooth_client import AsyncClient, AsyncSampler, AsyncSession, Client, RemoteSession, Sampler, dialogues
from finetooth_hooks import Datum, Handle, Sampling

TWINS = ((Client, AsyncClient), (RemoteSession, AsyncSession), (Sampler, AsyncSampler))

DATA = [Datum.from_tokens([1, 2, 3])]
CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "forward": ((DATA,), {"keep": False}),
    "backward": ((Handle("h", 3), [np.zeros(2, np.float32)]), {}),
    "forward_backward": ((DATA, "cross_entropy"), {"normalizer": "sum"}),
    "step": ((), {"metrics": {"loss": 1.0}}),
    "zero_grad": ((), {}),
    "generate": (([[1, 2]], Sampling(max_tokens=2)), {}),
    "logprobs": ((DATA,), {"role": "reference"}),
    "save": (("end",), {"kind": "weights"}),
    "load": (("c",), {"optimizer": False}),
    "close": ((), {}),
}
"""Arguments of each method of a session."""


def public(cls: type) -> dict[str, Any]:
    return {name: value for name, value in inspect.getmembers(cls, inspect.isfunction) if not name.startswith("_")}


@pytest.mark.parametrize(("waits", "awaits"), TWINS, ids=lambda cls: cls.__name__)
def test_twins_have_the_same_methods(waits: type, awaits: type) -> None:
    assert public(waits).keys() == public(awaits).keys()
    for name, method in public(waits).items():
        twin = public(awaits)[name]
        assert inspect.signature(method).parameters == inspect.signature(twin).parameters, name
        assert method.__doc__ and method.__doc__ == twin.__doc__, name
        assert "Dialogue" not in str(inspect.signature(method)), name
        assert inspect.iscoroutinefunction(twin) is (name != "stream")


def asked_by(dialogue: dialogues.Dialogue[Any]) -> tuple[str, str, Any, Any]:
    """The first request of a dialogue."""
    request = next(dialogue)
    assert isinstance(request, dialogues.Request)
    dialogue.close()
    return request.method, request.path, request.body, request.query


@pytest.mark.parametrize("name", CALLS)
def test_both_send_what_the_dialogue_asks_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither client adds, changes or leaves out an argument."""
    assert CALLS.keys() == public(RemoteSession).keys() - {"stream"}
    positional, named = CALLS[name]
    server = dialogues.ServerDialogues("http://127.0.0.1:9", 1.0)
    wanted = asked_by(getattr(dialogues.SessionDialogues(server, "s", 1), name)(*positional, **named))
    sent: list[Any] = []

    class Enough(Exception):
        pass

    def send(self: Any, method: str, path: str, *, json: Any, params: Any) -> Any:
        sent.append((method, path, json, params))
        raise Enough

    async def send_later(self: Any, method: str, path: str, *, json: Any, params: Any) -> Any:
        send(self, method, path, json=json, params=params)

    monkeypatch.setattr("httpx2.Client.request", send)
    monkeypatch.setattr("httpx2.AsyncClient.request", send_later)
    with finetooth.Client(server.url) as client, pytest.raises(Enough):
        session = RemoteSession(client, dialogues.SessionDialogues(client._calls, "s", 1))
        getattr(session, name)(*positional, **named)

    async def begin() -> None:
        async with finetooth.AsyncClient(server.url) as client:
            twin = AsyncSession(client, dialogues.SessionDialogues(client._calls, "s", 1))
            method: Callable[..., Coroutine[Any, Any, Any]] = getattr(twin, name)
            await method(*positional, **named)

    with pytest.raises(Enough):
        asyncio.run(begin())
    assert sent == [wanted, wanted]
    method = "DELETE" if name == "close" else "POST"
    path = "/v1/sessions/s" if name == "close" else f"/v1/sessions/s/{name}"
    assert wanted[:2] == (method, path)


def test_calls_that_overlap_are_numbered_in_the_order_of_their_begin() -> None:
    """Written by hand: two calls are begun, the second is answered first."""
    session = dialogues.SessionDialogues(dialogues.ServerDialogues("http://x", 1.0), "s", 1)
    first, second = session.step(), session.zero_grad()
    begun = [next(first), next(second)]
    assert [request.query["seq"] for request in begun if isinstance(request, dialogues.Request)] == [1, 2]
    done = b'{"id": "c", "state": "done", "result": null, "error": null}'
    with pytest.raises(StopIteration):
        second.send(dialogues.Answer(200, done))
    with pytest.raises(finetooth_client.ServerError, match="413"):
        first.send(dialogues.Answer(413, b"too large"))
    third = next(session.zero_grad())
    assert isinstance(third, dialogues.Request) and third.query is not None
    assert third.query["seq"] == 3  # the number of a call that was refused is taken again only if none came after it
