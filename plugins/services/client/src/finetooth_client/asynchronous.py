"""The client for asyncio. Calls of a session may overlap: they are done in the order in which they were begun."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import httpx2 as httpx
import numpy as np
from finetooth_hooks import Backward, Completion, Datum, Forward, Generated, Handle, Sampling, Stepped
from finetooth_hooks.engine import StepSettings
from numpy.typing import NDArray

from finetooth_client import messages as m
from finetooth_client.messages import Normalizer, Pick
from finetooth_client.pinning import trust, untrusted
from finetooth_client.streaming import AsyncTokenStream


class AsyncClient:
    """A connection to a server.

    Args:
        url: of the server, `http://127.0.0.1:8420`.
        key: an API key; not needed where the server runs without keys.
        patience: seconds for which a request is tried again while the server cannot be reached.
        verify: False, or the path of a certificate, for a server with one of its own.
        fingerprint: SHA-256 of the server's certificate, as `ft serve` prints it; no other one is then trusted.

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
        self.url, self._patience = url.rstrip("/"), patience
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

    async def session(
        self,
        base: str = "",
        *,
        adapter: Pick | None = None,
        optimizer: Pick | None = None,
        schedule: Pick | None = None,
        train: Mapping[str, Any] | None = None,
        strategy: Pick | None = None,
        checkpoint: str | None = None,
        restore_optimizer: bool = True,
        metadata: Mapping[str, Any] | None = None,
    ) -> AsyncSession:
        """Make a model to train.

        Args:
            base: name of a base model that the server offers.
            strategy: over several devices (`ddp`, `zero-2`, ...); one that a session cannot have is refused.
            checkpoint: begin with this one, and with the recipe that it was made with.

        Raises:
            ServerError: the server does not take it.
            CallFailed: the model cannot be built.
        """
        sections = {
            "adapter": adapter,
            "optimizer": optimizer,
            "schedule": schedule,
            "train": train,
            "strategy": strategy,
        }
        id_ = secrets.token_hex(16)
        body = {
            **{name: value for name, value in sections.items() if value is not None},
            "id": id_,
            "base": base,
            "checkpoint": checkpoint,
            "restore_optimizer": restore_optimizer,
            "metadata": dict(metadata or {}),
        }
        made = await self._finished(await self._request("POST", "/v1/sessions", body, {"wait": m.WAIT}))
        m.read_call(made, m.Sent("create"))
        return AsyncSession(self, id_, 1)

    async def attach(self, id: str) -> AsyncSession:
        """Go on with a session that was made earlier."""
        return AsyncSession(self, id, (await self.describe(id)).next_seq)

    async def describe(self, id: str) -> m.Session:
        """Facts of a session."""
        return m.session(await self._request("GET", f"/v1/sessions/{id}"))

    async def sessions(self) -> list[m.Session]:
        """Sessions that are not closed."""
        return [m.session(one) for one in await self._request("GET", "/v1/sessions")]

    async def sampler(self, base: str = "", *, checkpoint: str | None = None) -> AsyncSampler:
        """Sample from a base model or a checkpoint, beside other clients."""
        made = await self._request("POST", "/v1/samplers", {"base": base, "checkpoint": checkpoint})
        return AsyncSampler(self, made["id"])

    async def models(self) -> list[str]:
        """Names of base models that are served."""
        return [one["name"] for one in await self._request("GET", "/v1/models")]

    async def checkpoints(self, session: str | None = None) -> list[m.Checkpoint]:
        """Checkpoints, oldest first; of one session if asked."""
        found = await self._request("GET", "/v1/checkpoints", query={"session": session} if session else None)
        return [m.checkpoint(one) for one in found]

    async def delete_checkpoint(self, id: str) -> None:
        """Remove a checkpoint."""
        await self._request("DELETE", f"/v1/checkpoints/{id}")

    async def health(self) -> Mapping[str, Any]:
        """Whether the server works, and how many calls wait."""
        found: Mapping[str, Any] = await self._request("GET", "/health")
        return found

    # --- requests -----------------------------------------------------------------------------------------------------

    async def _request(self, method: str, path: str, body: Any = None, query: Mapping[str, Any] | None = None) -> Any:
        end, pause = time.monotonic() + self._patience, 0.1
        last: Exception | None = None
        while True:
            try:
                answer = await self._http.request(method, path, json=body, params=query)
                if answer.status_code not in m.RETRIED:
                    break
                last = m.read_refusal(answer.status_code, answer.text)
            except httpx.TransportError as error:
                if untrusted(error):
                    raise m.not_trusted(self.url, error) from error
                last = error
            if time.monotonic() + pause > end:
                raise last if isinstance(last, m.ServerError) else m.unreachable(self.url, self._patience, last)
            await asyncio.sleep(pause)
            pause = min(2 * pause, 5.0)
        if answer.status_code >= 400:
            raise m.read_refusal(answer.status_code, answer.text)
        return answer.json() if answer.content else None

    async def _finished(self, call: Any) -> Any:
        while call["state"] == "queued":
            call = await self._request("GET", f"/v1/calls/{call['id']}", query={"wait": m.WAIT})
        return call


class _Sequence:
    """Calls in a row, each with a number, so that one that is sent twice is done once."""

    def __init__(self, client: AsyncClient, path: str, first: int) -> None:
        self._client, self._path, self._next = client, path, first

    async def call(self, sent: m.Sent) -> Any:
        return m.read_call(await self._client._finished(await self.submit(sent, m.WAIT)), sent)

    async def submit(self, sent: m.Sent, wait: float = 0.0) -> Any:
        """The call as the server has it after at most `wait` seconds."""
        seq = self._next
        self._next += 1
        try:
            return await self._client._request(
                "POST", f"{self._path}/{sent.name}", sent.body, {"seq": seq, "wait": wait}
            )
        except m.ServerError:
            if self._next == seq + 1:  # it was not taken, and nothing came after it
                self._next = seq
            raise

    def stream(self, sent: m.Sent) -> AsyncTokenStream:
        client = self._client
        return AsyncTokenStream(client._http, client.url, client._patience, lambda: self.submit(sent))


class AsyncSession:
    """A model that the server trains: the eight primitives, with the words of `finetooth_hooks.engine.Engine`. Losses
    are named, not passed.

    Attributes:
        id: for `Client.attach`.
    """

    def __init__(self, client: AsyncClient, id: str, first: int) -> None:
        self.id, self._client = id, client
        self._calls = _Sequence(client, f"/v1/sessions/{id}", first)

    async def forward(
        self,
        data: Sequence[Datum],
        loss: Pick | None = None,
        *,
        role: str = "policy",
        returns: Collection[str] = ("logprobs",),
        normalizer: Normalizer | None = None,
        keep: bool = True,
        positions: Sequence[Sequence[int]] | None = None,
    ) -> Forward:
        """Evaluate.

        Args:
            keep: keep a handle for `backward`.
            positions: for each datum, where `logits` and `hidden` are returned; default is everywhere.
        """
        found: Forward = await self._calls.call(m.forward(data, loss, role, returns, normalizer, keep, positions))
        return found

    async def backward(
        self,
        handle: Handle,
        grads: Sequence[NDArray[np.floating[Any]]] | None = None,
        *,
        normalizer: Normalizer | None = None,
    ) -> Backward:
        """Accumulate gradients of the loss given to `forward`, or from dL/dlogprob per datum."""
        found: Backward = await self._calls.call(m.backward(handle, grads, normalizer))
        return found

    async def forward_backward(
        self, data: Sequence[Datum], loss: Pick = "cross_entropy", *, normalizer: Normalizer | None = None
    ) -> Forward:
        """forward and backward, micro-batch by micro-batch."""
        found: Forward = await self._calls.call(m.forward_backward(data, loss, normalizer))
        return found

    async def step(
        self, *, settings: StepSettings | None = None, metrics: Mapping[str, float] | None = None
    ) -> Stepped:
        """Clip, optimizer, schedule; gradients are dropped afterwards."""
        found: Stepped = await self._calls.call(m.step(settings, metrics))
        return found

    async def zero_grad(self) -> None:
        """Drop accumulated gradients."""
        await self._calls.call(m.zero_grad())

    async def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Generated:
        """Sample from the weights as they are now."""
        found: Generated = await self._calls.call(m.generate(prompts, sampling))
        return found

    def stream(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> AsyncTokenStream:
        """`generate`, token by token: iterate over the pieces, then read `completions`."""
        return self._calls.stream(m.generate(prompts, sampling))

    async def logprobs(self, data: Sequence[Datum], *, role: str = "policy") -> list[NDArray[np.float32]]:
        """Score targets without a graph."""
        found: list[NDArray[np.float32]] = await self._calls.call(m.logprobs(data, role))
        return found

    async def save(self, name: str, *, kind: str = "state", overwrite: bool = False, ttl: float | None = None) -> str:
        """Write a checkpoint on the server; returns its id."""
        found: str = await self._calls.call(m.save(name, kind, overwrite, ttl))
        return found

    async def load(self, checkpoint: str, *, optimizer: bool = True) -> None:
        """Take a checkpoint's state, or its weights alone."""
        await self._calls.call(m.load(checkpoint, optimizer))

    async def close(self) -> None:
        """End the session; its checkpoints stay."""
        await self._client._request("DELETE", f"/v1/sessions/{self.id}")


class AsyncSampler:
    """Weights to sample from."""

    def __init__(self, client: AsyncClient, id: str) -> None:
        self.id = id
        self._calls = _Sequence(client, f"/v1/samplers/{id}", 1)

    async def generate(self, prompt: Sequence[int], sampling: Sampling, *, seeded: bool = False) -> list[Completion]:
        """Sample `sampling.n` completions of one prompt.

        Args:
            seeded: `sampling.seed` was chosen: the same one gives the same tokens.
        """
        found: list[Completion] = await self._calls.call(m.sample(prompt, sampling, seeded))
        return found

    def stream(self, prompt: Sequence[int], sampling: Sampling, *, seeded: bool = False) -> AsyncTokenStream:
        """`generate`, token by token: iterate over the pieces, then read `completions`."""
        return self._calls.stream(m.sample(prompt, sampling, seeded))
