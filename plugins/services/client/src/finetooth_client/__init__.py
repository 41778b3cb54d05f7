"""A client for finetooth servers, sync and async."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetooth_client.asynchronous import AsyncClient, AsyncSampler, AsyncSession
    from finetooth_client.messages import CallFailed, Checkpoint, ServerError, Session
    from finetooth_client.streaming import AsyncTokenStream, Piece, TokenStream
    from finetooth_client.synchronous import Client, RemoteSession, Sampler

_WHERE = {
    "AsyncClient": "asynchronous",
    "AsyncSampler": "asynchronous",
    "AsyncSession": "asynchronous",
    "AsyncTokenStream": "streaming",
    "CallFailed": "messages",
    "Checkpoint": "messages",
    "Client": "synchronous",
    "Piece": "streaming",
    "RemoteSession": "synchronous",
    "Sampler": "synchronous",
    "ServerError": "messages",
    "Session": "messages",
    "TokenStream": "streaming",
}

__all__ = [
    "AsyncClient",
    "AsyncSampler",
    "AsyncSession",
    "AsyncTokenStream",
    "CallFailed",
    "Checkpoint",
    "Client",
    "Piece",
    "RemoteSession",
    "Sampler",
    "ServerError",
    "Session",
    "TokenStream",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
