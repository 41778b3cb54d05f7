"""The client for asyncio. Calls of a session may overlap; the server executes them in the order in which they began."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
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
from finetooth_client.streaming import AsyncTokenStream

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")


async def _hold(http: httpx.AsyncClient, dialogue: Dialogue[T]) -> T:
    """Execute the steps of a dialogue until it ends."""
    came: Answer | Exception | None = None
    while True:
        try:
            request = dialogue.send(came)
        except StopIteration as end:
            result: T = end.value
            return result
        if isinstance(request, Pause):
            await asyncio.sleep(request.seconds)
            came = None
            continue
        try:
            answer = await http.request(request.method, request.path, json=request.body, params=request.query)
            came = Answer(answer.status_code, answer.content)
        except httpx.TransportError as error:
            came = error


def _awaits(
    dialogue: Callable[Concatenate[Any, P], Dialogue[T]],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """A method that returns when the dialogue has ended."""

    async def method(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await _hold(self._http, dialogue(self._calls, *args, **kwargs))

    describe(method, dialogue)
    return method


def _opens(
    dialogue: Callable[Concatenate[Any, P], Dialogue[T]], made: Callable[[AsyncClient, T], U]
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, U]]:
    """A method that returns `made` of the dialogue's result."""

    async def method(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> U:
        return made(self, await _hold(self._http, dialogue(self._calls, *args, **kwargs)))

    describe(method, dialogue, made.__name__)
    return method


class _Calling:
    """A model or sampler at the server that takes calls."""

    _calls: CallDialogues

    def __init__(self, client: AsyncClient) -> None:
        self._client, self._http = client, client._http

    _submit = _awaits(CallDialogues.submit)

    def _stream(self, sent: m.Sent) -> AsyncTokenStream:
        server = self._client._calls
        return AsyncTokenStream(self._http, server.url, server.patience, lambda: self._submit(sent))


class AsyncSession(_Calling):
    """A model that the server trains: the eight primitives of `finetooth_hooks.engine.Engine`. Losses are named, not
    passed.

    Attributes:
        id: for `Client.attach`.
    """

    def __init__(self, client: AsyncClient, calls: SessionDialogues) -> None:
        super().__init__(client)
        self.id, self._calls = calls.id, calls

    forward = _awaits(SessionDialogues.forward)
    backward = _awaits(SessionDialogues.backward)
    forward_backward = _awaits(SessionDialogues.forward_backward)
    step = _awaits(SessionDialogues.step)
    zero_grad = _awaits(SessionDialogues.zero_grad)
    generate = _awaits(SessionDialogues.generate)
    logprobs = _awaits(SessionDialogues.logprobs)
    save = _awaits(SessionDialogues.save)
    load = _awaits(SessionDialogues.load)
    close = _awaits(SessionDialogues.close)

    def stream(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> AsyncTokenStream:
        """`generate`, token by token: iterate over the pieces, then read `completions`."""
        return self._stream(m.generate(prompts, sampling))


class AsyncSampler(_Calling):
    """Weights to sample from."""

    def __init__(self, client: AsyncClient, calls: SamplerDialogues) -> None:
        super().__init__(client)
        self.id, self._calls = calls.id, calls

    generate = _awaits(SamplerDialogues.generate)

    def stream(self, prompt: Sequence[int], sampling: Sampling, *, seeded: bool = False) -> AsyncTokenStream:
        """`generate`, token by token: iterate over the pieces, then read `completions`."""
        return self._stream(m.sample(prompt, sampling, seeded))


class AsyncClient:
    """A connection to a server.

    Args:
        url: of the server, `http://127.0.0.1:8420`.
        key: an API key; not needed if the server runs without keys.
        patience: seconds for which a request is repeated if the server cannot be reached.
        verify: False, or the path of a self-signed certificate.
        fingerprint: SHA-256 of the server's certificate, as `ft serve` prints it; then only this one is trusted.

    Example:
        >>> client = finetooth.AsyncClient("http://127.0.0.1:8420")  # doctest: +SKIP
        >>> session = await client.session("smollm2-135m")  # doctest: +SKIP
        >>> losses = await asyncio.gather(*(session.forward_backward(part) for part in parts))  # doctest: +SKIP
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
        self._http = httpx.AsyncClient(
            base_url=self.url, headers=headers, timeout=m.WAIT + 30, verify=trust(verify, fingerprint)
        )

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; sessions stay on the server."""
        await self._http.aclose()

    session = _opens(ServerDialogues.session, AsyncSession)
    attach = _opens(ServerDialogues.attach, AsyncSession)
    sampler = _opens(ServerDialogues.sampler, AsyncSampler)
    describe = _awaits(ServerDialogues.describe)
    sessions = _awaits(ServerDialogues.sessions)
    models = _awaits(ServerDialogues.models)
    checkpoints = _awaits(ServerDialogues.checkpoints)
    delete_checkpoint = _awaits(ServerDialogues.delete_checkpoint)
    cancel = _awaits(ServerDialogues.cancel)
    health = _awaits(ServerDialogues.health)
