"""The protocol of the client, shared by the sync and the async client, without connections.

A dialogue is a generator: it yields what to do next, a `Request` or a `Pause`, and is sent the result. The two clients
differ only in how they wait (`synchronous`, `asynchronous`).
"""

from __future__ import annotations

import inspect
import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from finetooth_hooks import Backward, Completion, Datum, Forward, Generated, Handle, Sampling, Stepped
from finetooth_hooks.engine import StepSettings
from numpy.typing import NDArray

from finetooth_client import messages as m
from finetooth_client.messages import Normalizer, Pick
from finetooth_client.pinning import untrusted

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """A request to send. Its result is an `Answer`, or the exception of a failed connection."""

    method: str
    path: str
    body: Any = None
    query: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Pause:
    """A pause, without a result."""

    seconds: float


@dataclass(frozen=True)
class Answer:
    """What the server sent."""

    status: int
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode(errors="replace")


LONGEST = 5.0
"""Most seconds between two attempts."""

logger = logging.getLogger(__name__)

Dialogue = Generator[Request | Pause, Answer | Exception | None, T]


class Patience:
    """When to try again, and when to give up."""

    def __init__(self, url: str, seconds: float) -> None:
        self._url, self._seconds = url, seconds
        self.reset()

    def reset(self) -> None:
        """Note that the server answered."""
        self._end, self._pause = time.monotonic() + self._seconds, 0.1

    def pause(self, error: Exception | None) -> float:
        """Seconds to wait.

        Raises:
            ServerError: the time is over.
        """
        if time.monotonic() + self._pause > self._end:
            raise error if isinstance(error, m.ServerError) else m.unreachable(self._url, self._seconds, error)
        now, self._pause = self._pause, min(2 * self._pause, LONGEST)
        if now < LONGEST == self._pause:  # it has waited for seconds
            left = self._end - time.monotonic()
            logger.warning("%s does not answer (%s); trying for up to %.0f s more", self._url, error, left)
        return now


class ServerDialogues:
    """Requests to a server, outside sessions.

    Args:
        url: of the server.
        patience: seconds for which a request is repeated if the server cannot be reached.
    """

    def __init__(self, url: str, patience: float) -> None:
        self.url, self.patience = url.rstrip("/"), patience

    def session(
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
    ) -> Dialogue[SessionDialogues]:
        """Make a model to train.

        Args:
            base: name of a base model that the server offers.
            strategy: over several devices, such as `{"name": "ddp", "devices": 2}`; a server that trains each model on
                one refuses it.
            checkpoint: begin with it and its recipe.
            restore_optimizer: with a checkpoint, take its optimizer's state too; else `optimizer`, `schedule` and
                `train` may be others.

        Raises:
            ServerError: the server refuses it.
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
        begun = yield from self.request("POST", "/v1/sessions", body, {"wait": m.WAIT})
        m.read_call((yield from self.finished(begun)), m.Sent("create"))
        return SessionDialogues(self, id_, 1)

    def attach(self, id: str) -> Dialogue[SessionDialogues]:
        """Attach to a session that was made earlier."""
        return SessionDialogues(self, id, (yield from self.describe(id)).next_seq)

    def describe(self, id: str) -> Dialogue[m.Session]:
        """Facts of a session."""
        return m.session((yield from self.request("GET", f"/v1/sessions/{id}")))

    def sessions(self) -> Dialogue[list[m.Session]]:
        """Sessions that are not closed."""
        return [m.session(session) for session in (yield from self.request("GET", "/v1/sessions"))]

    def sampler(self, base: str = "", *, checkpoint: str | None = None) -> Dialogue[SamplerDialogues]:
        """Sample from a base model or a checkpoint, in one batch with other clients."""
        made = yield from self.request("POST", "/v1/samplers", {"base": base, "checkpoint": checkpoint})
        return SamplerDialogues(self, made["id"])

    def models(self) -> Dialogue[list[str]]:
        """Names of base models that are served."""
        return [model["name"] for model in (yield from self.request("GET", "/v1/models"))]

    def checkpoints(self, session: str | None = None) -> Dialogue[list[m.Checkpoint]]:
        """Checkpoints, oldest first; of one session if asked."""
        query = {"session": session} if session else None
        return [
            m.checkpoint(checkpoint) for checkpoint in (yield from self.request("GET", "/v1/checkpoints", query=query))
        ]

    def delete_checkpoint(self, id: str) -> Dialogue[None]:
        """Remove a checkpoint."""
        yield from self.request("DELETE", f"/v1/checkpoints/{id}")

    def cancel(self, call: str) -> Dialogue[str]:
        """Cancel an unfinished call: a waiting one fails when its turn comes, a running one stops before its next
        micro-batch or token, and its model is unchanged.

        Args:
            call: its id, such as a stream's `call`.

        Returns:
            the state of the call: `failed`, `done` if it had finished, or `queued` while it waits.
        """
        return str((yield from self.request("DELETE", f"/v1/calls/{call}"))["state"])

    def health(self) -> Dialogue[Mapping[str, Any]]:
        """Whether the server works, and how many calls wait."""
        state: Mapping[str, Any] = yield from self.request("GET", "/health")
        return state

    def request(
        self, method: str, path: str, body: Any = None, query: Mapping[str, Any] | None = None
    ) -> Dialogue[Any]:
        """The JSON of an answer; the request is repeated while the server cannot be reached or is busy.

        Raises:
            ServerError: the server refused it, or patience is over.
        """
        patience = Patience(self.url, self.patience)
        while True:
            answer = yield Request(method, path, body, query)
            if isinstance(answer, Answer) and answer.status not in m.RETRIED:
                break
            if isinstance(answer, Exception) and untrusted(answer):
                raise m.not_trusted(self.url, answer) from answer
            failed = m.read_refusal(answer.status, answer.text) if isinstance(answer, Answer) else answer
            yield Pause(patience.pause(failed))
        if answer.status >= 400:
            raise m.read_refusal(answer.status, answer.text)
        return json.loads(answer.content) if answer.content else None

    def finished(self, call: Any) -> Dialogue[Any]:
        """The call, once the server is done with it."""
        while call["state"] == "queued":
            call = yield from self.request("GET", f"/v1/calls/{call['id']}", query={"wait": m.WAIT})
        return call


class CallDialogues:
    """Numbered calls, so that the server executes a repeated one once.

    Args:
        path: of their receiver.
        first: number of the next call.
    """

    def __init__(self, server: ServerDialogues, path: str, first: int) -> None:
        self._server, self._path, self._next = server, path, first
        self._lock = threading.Lock()

    def call(self, sent: m.Sent) -> Dialogue[Any]:
        """The result of a call."""
        taken = yield from self.submit(sent, m.WAIT)
        return m.read_call((yield from self._server.finished(taken)), sent)

    def submit(self, sent: m.Sent, wait: float = 0.0) -> Dialogue[Any]:
        """The call as the server has it after at most `wait` seconds."""
        with self._lock:
            seq = self._next
            self._next += 1
        try:
            query = {"seq": seq, "wait": wait}
            return (yield from self._server.request("POST", f"{self._path}/{sent.name}", sent.body, query))
        except m.ServerError:
            with self._lock:
                if self._next == seq + 1:  # it was not accepted, and no later call was
                    self._next = seq
            raise


class SessionDialogues(CallDialogues):
    """A model that the server trains: the eight primitives of `finetooth_hooks.engine.Engine`."""

    def __init__(self, server: ServerDialogues, id: str, first: int) -> None:
        super().__init__(server, f"/v1/sessions/{id}", first)
        self.id = id

    def forward(
        self,
        data: Sequence[Datum],
        loss: Pick | None = None,
        *,
        role: str = "policy",
        returns: Collection[str] = ("logprobs",),
        normalizer: Normalizer | None = None,
        keep: bool = True,
        positions: Sequence[Sequence[int]] | None = None,
    ) -> Dialogue[Forward]:
        """Evaluate.

        Args:
            keep: keep a handle for `backward`.
            positions: for each example, where `logits` and `hidden` are returned; default: everywhere.
        """
        return self.call(m.forward(data, loss, role, returns, normalizer, keep, positions))

    def backward(
        self,
        handle: Handle,
        grads: Sequence[NDArray[np.floating[Any]]] | None = None,
        *,
        normalizer: Normalizer | None = None,
    ) -> Dialogue[Backward]:
        """Accumulate gradients of the loss given to `forward`, or from dL/dlogprob per example."""
        return self.call(m.backward(handle, grads, normalizer))

    def forward_backward(
        self, data: Sequence[Datum], loss: Pick = "cross_entropy", *, normalizer: Normalizer | None = None
    ) -> Dialogue[Forward]:
        """forward and backward, micro-batch by micro-batch."""
        return self.call(m.forward_backward(data, loss, normalizer))

    def step(
        self, *, settings: StepSettings | None = None, metrics: Mapping[str, float] | None = None
    ) -> Dialogue[Stepped]:
        """Clip, optimizer, schedule; gradients are dropped afterwards."""
        return self.call(m.step(settings, metrics))

    def zero_grad(self) -> Dialogue[None]:
        """Drop accumulated gradients."""
        return self.call(m.zero_grad())

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Dialogue[Generated]:
        """Sample from the current weights."""
        return self.call(m.generate(prompts, sampling))

    def logprobs(self, data: Sequence[Datum], *, role: str = "policy") -> Dialogue[list[NDArray[np.float32]]]:
        """Score targets without a graph."""
        return self.call(m.logprobs(data, role))

    def save(
        self, name: str, *, kind: str = "state", overwrite: bool = False, ttl: float | None = None
    ) -> Dialogue[str]:
        """Write a checkpoint on the server; returns its id."""
        return self.call(m.save(name, kind, overwrite, ttl))

    def load(self, checkpoint: str, *, optimizer: bool = True) -> Dialogue[None]:
        """Load a checkpoint's state, or only its weights."""
        return self.call(m.load(checkpoint, optimizer))

    def close(self) -> Dialogue[None]:
        """End the session; its checkpoints stay."""
        yield from self._server.request("DELETE", self._path)


class SamplerDialogues(CallDialogues):
    """Weights to sample from."""

    def __init__(self, server: ServerDialogues, id: str) -> None:
        super().__init__(server, f"/v1/samplers/{id}", 1)
        self.id = id

    def generate(
        self, prompt: Sequence[int], sampling: Sampling, *, seeded: bool = False
    ) -> Dialogue[list[Completion]]:
        """Sample `sampling.n` completions of one prompt.

        Args:
            seeded: `sampling.seed` was chosen: the same one gives the same tokens.
        """
        return self.call(m.sample(prompt, sampling, seeded))


def describe(method: Callable[..., Any], dialogue: Callable[..., Any], returns: str = "") -> None:
    """Give a client's method the name, docstring and signature of its dialogue, for `help`.

    Args:
        returns: name of the method's return type; default: the dialogue's.
    """
    result = str(dialogue.__annotations__["return"]).removeprefix("Dialogue[").removesuffix("]")
    signature = inspect.signature(dialogue).replace(return_annotation=returns or result)
    method.__name__, method.__doc__ = dialogue.__name__, dialogue.__doc__
    method.__signature__ = signature  # type: ignore[attr-defined]
