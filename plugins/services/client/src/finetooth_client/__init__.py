"""A client for finetooth servers, sync and async. Importing it imports none of its modules before a name is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetooth_client.asynchronous import AsyncClient as AsyncClient
    from finetooth_client.asynchronous import AsyncSampler as AsyncSampler
    from finetooth_client.asynchronous import AsyncSession as AsyncSession
    from finetooth_client.messages import CallFailed as CallFailed
    from finetooth_client.messages import Checkpoint as Checkpoint
    from finetooth_client.messages import ServerError as ServerError
    from finetooth_client.messages import Session as Session
    from finetooth_client.streaming import AsyncTokenStream as AsyncTokenStream
    from finetooth_client.streaming import Piece as Piece
    from finetooth_client.streaming import TokenStream as TokenStream
    from finetooth_client.synchronous import Client as Client
    from finetooth_client.synchronous import RemoteSession as RemoteSession
    from finetooth_client.synchronous import Sampler as Sampler

_NAMES = {
    "asynchronous": {"AsyncClient", "AsyncSampler", "AsyncSession"},
    "messages": {"CallFailed", "Checkpoint", "ServerError", "Session"},
    "streaming": {"AsyncTokenStream", "Piece", "TokenStream"},
    "synchronous": {"Client", "RemoteSession", "Sampler"},
}


def __getattr__(name: str) -> Any:
    for module, names in _NAMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
