"""The messages of each primitive, shared by the sync and the async client."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from finetooth_hooks import Backward, Completion, Datum, EngineError, FinetoothError, Forward, Handle, Sampling
from finetooth_hooks.engine import StepSettings
from finetooth_wire import wire
from numpy.typing import NDArray

Pick = str | Mapping[str, Any]
"""A loss, an adapter, an optimizer: its name, or a mapping with `name` and options."""

Normalizer = str | Mapping[str, float]
"""Totals of the whole step by name, or `sum`."""

WAIT = 30.0
"""Seconds for which one request waits for a result."""

RETRIED = (429, 502, 503, 504)
"""HTTP statuses after which a request is repeated."""


class ServerError(FinetoothError):
    """The server refused a request, or could not be reached for longer than the client's patience.

    Attributes:
        status: HTTP's; 0 without an answer.
    """

    def __init__(self, problem: str, *, status: int = 0, action: str = "") -> None:
        super().__init__(problem, action=action)
        self.status = status


class CallFailed(EngineError):
    """An accepted call failed; the session stays usable.

    Attributes:
        category: `user` or `server`: whose mistake it was.
    """

    def __init__(self, problem: str, category: str) -> None:
        super().__init__(problem)
        self.category = category


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the server.

    Attributes:
        size: bytes.
        expires: seconds since 1970; None is never.
    """

    id: str
    session: str
    kind: str
    name: str
    base: str
    created: float
    expires: float | None
    size: int


@dataclass(frozen=True)
class Session:
    """Facts of a session on the server.

    Attributes:
        recipe: of its model.
        next_seq: number of the next call.
    """

    id: str
    base: str
    recipe: Mapping[str, Any]
    metadata: Mapping[str, Any]
    created: float
    calls: int
    next_seq: int
    closed: bool


@dataclass(frozen=True)
class Sent:
    """One call.

    Attributes:
        name: the last part of its route.
        body: its arguments.
        read: from the result's JSON to the method's result.
    """

    name: str
    body: Mapping[str, Any] = field(default_factory=dict)
    read: Callable[[Any], Any] = lambda result: None


def forward(
    data: Sequence[Datum],
    loss: Pick | None,
    role: str,
    returns: Collection[str],
    normalizer: Normalizer | None,
    keep: bool,
    positions: Sequence[Sequence[int]] | None,
) -> Sent:
    """`Engine.forward`."""
    body = {"data": _data(data), "role": role, "returns": list(returns), "keep": keep}
    more = {"loss": loss, "normalizer": normalizer, "positions": positions and [list(places) for places in positions]}
    return Sent("forward", _with(body, more), wire.decode_forward)


def backward(handle: Handle, grads: Sequence[NDArray[np.floating[Any]]] | None, normalizer: Normalizer | None) -> Sent:
    """`Engine.backward`."""
    body = {"handle": {"id": handle.id, "weights_version": handle.weights_version}}
    sent = None if grads is None else [wire.encode_array(np.asarray(grad)) for grad in grads]
    return Sent("backward", _with(body, {"grads": sent, "normalizer": normalizer}), wire.decode_backward)


def forward_backward(data: Sequence[Datum], loss: Pick, normalizer: Normalizer | None) -> Sent:
    """`Engine.forward_backward`."""
    body = {"data": _data(data), "loss": loss}
    return Sent("forward_backward", _with(body, {"normalizer": normalizer}), wire.decode_forward)


def step(settings: StepSettings | None, metrics: Mapping[str, float] | None) -> Sent:
    """`Engine.step`."""
    sent = None if settings is None else wire.encode_step_settings(settings)
    return Sent("step", _with({}, {"settings": sent, "metrics": metrics}), wire.decode_stepped)


def zero_grad() -> Sent:
    """`Engine.zero_grad`."""
    return Sent("zero_grad")


def generate(prompts: Sequence[Sequence[int]], sampling: Sampling) -> Sent:
    """`Engine.generate`."""
    body = {"prompts": [[int(t) for t in prompt] for prompt in prompts], "sampling": wire.encode_sampling(sampling)}
    return Sent("generate", body, wire.decode_generated)


def logprobs(data: Sequence[Datum], role: str) -> Sent:
    """`Engine.logprobs`."""

    def read(result: Any) -> list[NDArray[np.float32]]:
        return [wire.decode_array(array, "logprobs") for array in result["logprobs"]]

    return Sent("logprobs", {"data": _data(data), "role": role}, read)


def save(name: str, kind: str, overwrite: bool, ttl: float | None) -> Sent:
    """Write a checkpoint; its id."""
    body = {"name": name, "kind": kind, "overwrite": overwrite}
    return Sent("save", _with(body, {"ttl": ttl}), lambda result: result["checkpoint"])


def load(checkpoint: str, optimizer: bool) -> Sent:
    """Load a checkpoint's state."""
    return Sent("load", {"checkpoint": checkpoint, "optimizer": optimizer})


def sample(prompt: Sequence[int], sampling: Sampling, seeded: bool) -> Sent:
    """Sample one prompt in a batch with those of others."""
    body = {
        "prompt": [int(token) for token in prompt],
        "sampling": wire.encode_sampling(sampling),
        "seeded": seeded,
    }
    return Sent("generate", body, lambda result: _completions(result["completions"]))


def read_call(answer: Any, sent: Sent) -> Any:
    """The result of a finished call.

    Raises:
        CallFailed: it failed.
    """
    if answer["state"] == "failed":
        raise CallFailed(answer["error"]["message"], answer["error"]["category"])
    return sent.read(answer["result"])


def read_refusal(status: int, text: str) -> ServerError:
    """The error for an invalid answer."""
    return ServerError(f"the server answered {status}: {text[:500]}", status=status)


def unreachable(url: str, seconds: float, error: Exception | None) -> ServerError:
    """The error after the client's patience is over."""
    why = f": {error}" if error else ""
    return ServerError(f"{url} gave no answer for {seconds:.0f} s{why}", action="see whether the server runs")


def not_trusted(url: str, error: Exception) -> ServerError:
    """The error for a certificate that is not the expected one."""
    return ServerError(f"{url}: {error}", action="give verify or fingerprint for a certificate of the server's own")


def checkpoint(value: Mapping[str, Any]) -> Checkpoint:
    """A checkpoint from its JSON."""
    return Checkpoint(**{name: value[name] for name in Checkpoint.__dataclass_fields__})


def session(value: Mapping[str, Any]) -> Session:
    """A session from its JSON."""
    return Session(**{name: value[name] for name in Session.__dataclass_fields__})


def _data(data: Sequence[Datum]) -> list[Any]:
    return [wire.encode_datum(datum) for datum in data]


def _completions(values: Sequence[Any]) -> list[Completion]:
    return [wire.decode_completion(value) for value in values]


def _with(body: Mapping[str, Any], more: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**body, **{name: value for name, value in more.items() if value is not None}}


__all__ = ["Backward", "CallFailed", "Checkpoint", "Forward", "Sent", "ServerError", "Session"]
