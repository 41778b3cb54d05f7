"""Requests to a server, all within one time limit, and faults that name it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import copy
from typing import Any, TypeVar

import httpx2 as httpx
from finetooth_hooks import UpstreamError

T = TypeVar("T")

RESUME = "see that it runs, then ft resume RUN"


REQUEST_WRONG = (400, 413, 422)
"""Statuses of an answer that mean a wrong request. Others concern the server, or the key."""

GATEWAY_TIMEOUT = 504

LORA_OFF = "LoRA is not enabled"
"""vLLM's message with status 500 if it may load adapters, but was started without --enable-lora."""


class ServerGone(UpstreamError):
    """The server is unreachable, does not answer in time, or ended during an answer; a restart may help."""


class NotThere(UpstreamError):
    """The server does not know the path."""


NEEDED: Mapping[str, str] = {
    "/v1/load_lora_adapter": "start vLLM with --enable-lora, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its "
    "environment",
    "/collective_rpc": "start vLLM with VLLM_SERVER_DEV_MODE=1 in its environment",
    "/is_sleeping": "start vLLM with --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1 in its environment",
}
"""The server settings that a path needs."""


class Asking:
    """Sends requests to a server.

    Args:
        called: its name in messages, `sampler vllm`.
        url: without a path: `127.0.0.1:8000`.
        key: bearer token; empty for none.
        limit: seconds for everything in one `run`.
        together: number of simultaneous requests.
    """

    def __init__(self, called: str, url: str, key: str, limit: float, together: int) -> None:
        self.called, self._limit, self._together = called, limit, together
        bare = url.rstrip("/").removesuffix("/v1")
        self.url = bare if "://" in bare else f"http://{bare}"
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def within(self, limit: float) -> Asking:
        """The same server with another time limit."""
        other = copy(self)
        other._limit = limit
        return other

    def client(self, **more: Any) -> httpx.AsyncClient:
        """An HTTP client with the server's key."""
        return httpx.AsyncClient(base_url=self.url, headers=self._headers, **more)

    def run(self, work: Callable[[Server], Awaitable[T]]) -> T:
        """Do `work` with the server.

        Raises:
            ServerGone: the server is unreachable, or did not answer everything within the limit.
            EngineError: the server refused a request.
        """

        async def inside() -> T:
            async with asyncio.timeout(self._limit), self.client(timeout=None) as client:
                return await work(Server(self, client, asyncio.Semaphore(self._together)))

        try:
            return asyncio.run(inside())
        except TimeoutError as error:
            raise ServerGone(
                f"{self.called}: {self.url} did not answer within {self._limit:g} s", action=RESUME, late=True
            ) from error
        except (httpx.HTTPError, OSError) as error:
            what = " ".join(str(error).split()) or type(error).__name__
            raise ServerGone(f"{self.called}: {self.url} cannot be reached: {what}", action=RESUME) from error

    def wrong(self, problem: str, action: str = "") -> UpstreamError:
        """The error for a wrong answer."""
        return UpstreamError(f"{self.called}: {self.url} {problem}", action=action or RESUME)


class Server:
    """A server within one `Asking.run`."""

    def __init__(self, asking: Asking, client: httpx.AsyncClient, room: asyncio.Semaphore) -> None:
        self.asking, self._client, self._room = asking, client, room

    async def get(self, path: str) -> Any:
        """JSON of an answer."""
        return await self._ask("GET", path)

    async def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """JSON of an answer; None for an empty one."""
        return await self._ask("POST", path, body)

    async def get_if_there(self, path: str) -> Any:
        """JSON of an answer; None if the server does not know the path."""
        try:
            return await self._ask("GET", path)
        except NotThere:
            return None

    async def up(self, path: str) -> bool:
        """Whether it answers with success."""
        try:
            return (await self._client.get(path)).status_code == 200
        except httpx.HTTPError:
            return False

    async def all(self, work: Sequence[Awaitable[T]]) -> list[T]:
        """Run all requests together; the first failure ends the others."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_plain(awaitable)) for awaitable in work]
        except* Exception as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        async with self._room:
            answer = await self._client.request(method, path, json=body)
        if answer.status_code >= 500 and LORA_OFF in answer.text:
            raise NotThere(f"{self.asking.called}: {self._status_line(path, answer)}", action=NEEDED[path])
        if answer.status_code >= 500:
            problem = f"{self.asking.called}: {self._status_line(path, answer)}"
            raise ServerGone(problem, action=RESUME, late=answer.status_code == GATEWAY_TIMEOUT)
        if answer.status_code == 404 and not _of_vllm(answer):
            action = NEEDED.get(path, "see that it is a server of this kind")
            raise NotThere(f"{self.asking.called}: {self._status_line(path, answer)}", action=action)
        if answer.status_code >= 400:
            raise self.asking.wrong(
                self._status_line(path, answer).removeprefix(f"{self.asking.url} "), "fix the setting"
            )
        try:
            return answer.json()
        except ValueError:
            return None

    def _status_line(self, path: str, answer: httpx.Response) -> str:
        return f"{self.asking.url} answers {path} with {answer.status_code}: {' '.join(answer.text[:300].split())}"


def _of_vllm(answer: httpx.Response) -> bool:
    """Whether a 404 comes from a handler of vLLM; else the path is unknown."""
    try:
        content = answer.json()
    except ValueError:
        return False
    return isinstance(content, Mapping) and content != {"detail": "Not Found"}


async def _plain(work: Awaitable[T]) -> T:
    return await work
