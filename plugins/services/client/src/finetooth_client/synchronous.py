"""The client that waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import httpx2 as httpx
from finetooth_hooks import Sampling

from finetooth_client import messages as m
from finetooth_client.dialogues import (
    Answer,
    CallDialogues,
    Dialogue,
    Pause,
    SamplerDialogues,
    ServerDialogues,
    SessionDialogues,
    describe,
)
from finetooth_client.pinning import trust
from finetooth_client.streaming import TokenStream

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")


def _hold(http: httpx.Client, dialogue: Dialogue[T]) -> T:
    """Execute the steps of a dialogue until it ends."""
    came: Answer | Exception | None = None
    while True:
        try:
            request = dialogue.send(came)
        except StopIteration as end:
            result: T = end.value
            return result
        if isinstance(request, Pause):
            time.sleep(request.seconds)
            came = None
            continue
        try:
            answer = http.request(request.method, request.path, json=request.body, params=request.query)
            came = Answer(answer.status_code, answer.content)
        except httpx.TransportError as error:
            came = error


def _waits(dialogue: Callable[Concatenate[Any, P], Dialogue[T]]) -> Callable[Concatenate[Any, P], T]:
    """A method that returns when the dialogue has ended."""

    def method(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return _hold(self._http, dialogue(self._calls, *args, **kwargs))

    describe(method, dialogue)
    return method


def _opens(
    dialogue: Callable[Concatenate[Any, P], Dialogue[T]], made: Callable[[Client, T], U]
) -> Callable[Concatenate[Any, P], U]:
    """A method that returns `made` of the dialogue's result."""

    def method(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> U:
        return made(self, _hold(self._http, dialogue(self._calls, *args, **kwargs)))

    describe(method, dialogue, made.__name__)
    return method


class _Calling:
    """A model or sampler at the server that takes calls."""

    _calls: CallDialogues

    def __init__(self, client: Client) -> None:
        self._client, self._http = client, client._http

    _submit = _waits(CallDialogues.submit)

    def _stream(self, sent: m.Sent) -> TokenStream:
        server = self._client._calls
        return TokenStream(self._http, server.url, server.patience, lambda: self._submit(sent))


class RemoteSession(_Calling):
    """A model that the server trains: the eight primitives of `finetooth_hooks.engine.Engine`. Losses are named, not
    passed.

    Attributes:
        id: for `Client.attach`.
    """

    def __init__(self, client: Client, calls: SessionDialogues) -> None:
        super().__init__(client)
        self.id, self._calls = calls.id, calls

    forward = _waits(SessionDialogues.forward)
    backward = _waits(SessionDialogues.backward)
    forward_backward = _waits(SessionDialogues.forward_backward)
    step = _waits(SessionDialogues.step)
    zero_grad = _waits(SessionDialogues.zero_grad)
    generate = _waits(SessionDialogues.generate)
    logprobs = _waits(SessionDialogues.logprobs)
    save = _waits(SessionDialogues.save)
    load = _waits(SessionDialogues.load)
    close = _waits(SessionDialogues.close)

    def stream(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> TokenStream:
        """`generate`, token by token: iterate over the pieces, then read `completions`."""
        return self._stream(m.generate(prompts, sampling))


class Sampler(_Calling):
    """Weights to sample from."""

    def __init__(self, client: Client, calls: SamplerDialogues) -> None:
        super().__init__(client)
        self.id, self._calls = calls.id, calls

    generate = _waits(SamplerDialogues.generate)

    def stream(self, prompt: Sequence[int], sampling: Sampling, *, seeded: bool = False) -> TokenStream:
        """`generate`, token by token: iterate over the pieces, then read `completions`."""
        return self._stream(m.sample(prompt, sampling, seeded))


class Client:
    """A connection to a server.

    Args:
        url: of the server, `http://127.0.0.1:8420`.
        key: an API key; not needed if the server runs without keys.
        patience: seconds for which a request is repeated if the server cannot be reached.
        verify: False, or the path of a self-signed certificate.
        fingerprint: SHA-256 of the server's certificate, as `ft serve` prints it; then only this one is trusted.

    Example:
        >>> client = finetooth.Client("http://127.0.0.1:8420")  # doctest: +SKIP
        >>> session = client.session("smollm2-135m", adapter={"name": "lora", "rank": 8})  # doctest: +SKIP
        >>> session.forward_backward(data, "cross_entropy").loss  # doctest: +SKIP
        >>> session.step()  # doctest: +SKIP
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        patience: float = 300.0,
        verify: bool | str = True,
        fingerprint: str | None = None,
    ) -> None:
        self._calls = ServerDialogues(url, patience)
        self.url = self._calls.url
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(
            base_url=self.url, headers=headers, timeout=m.WAIT + 30, verify=trust(verify, fingerprint)
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; sessions stay on the server."""
        self._http.close()

    session = _opens(ServerDialogues.session, RemoteSession)
    attach = _opens(ServerDialogues.attach, RemoteSession)
    sampler = _opens(ServerDialogues.sampler, Sampler)
    describe = _waits(ServerDialogues.describe)
    sessions = _waits(ServerDialogues.sessions)
    models = _waits(ServerDialogues.models)
    checkpoints = _waits(ServerDialogues.checkpoints)
    delete_checkpoint = _waits(ServerDialogues.delete_checkpoint)
    cancel = _waits(ServerDialogues.cancel)
    health = _waits(ServerDialogues.health)
