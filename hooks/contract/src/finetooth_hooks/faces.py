"""Faces: protocols under which a server offers its models to clients. Pages: a plugin's additions to the board.

A face translates a request into a call on a `FaceService`, and the call's result into a response. It computes nothing.
A plugin yields it from `ft_faces`, and `ft serve NAME` picks it by the entry's name.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from finetooth_hooks.context import CommandContext
from finetooth_hooks.sampling import Sampling

Asgi = Callable[
    [
        MutableMapping[str, Any],
        Callable[[], Awaitable[MutableMapping[str, Any]]],
        Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ],
    Awaitable[None],
]
"""An ASGI application."""

Json = Any
"""A JSON value as a Python object."""


@dataclass(frozen=True)
class FaceRoute:
    """A request that a face answers.

    Attributes:
        method: the HTTP method.
        path: below the face's `path`, in Starlette's notation: `/models/{model:path}`.
        scopes: an API key needs one of them, or `admin`; empty: every valid key is allowed. The service enforces
            scopes; a test compares these with it for every route.
    """

    method: str
    path: str
    scopes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FacePiece:
    """Consecutive tokens of one completion of a sampling call.

    Attributes:
        completion: its index, from 0.
        index: position of the first token in the completion.
        logprobs: of the tokens, under the unscaled model.
    """

    completion: int
    index: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True)
class StackPart:
    """One of several low-rank adapters on one base whose weighted sum is sampled.

    Attributes:
        adapter: name of an adapter that the server was started with; empty: the part is a checkpoint.
        checkpoint: id of the caller's checkpoint; empty: the part is an adapter of the server.
    """

    adapter: str = ""
    checkpoint: str = ""
    weight: float = 1.0


class FaceCaller(Protocol):
    """The caller of a request, known by its API key."""

    @property
    def tenant(self) -> str: ...

    def may(self, scope: str) -> bool:
        """Whether the key has the scope."""
        ...


class FaceService(Protocol):
    """The services of a server for a face. Methods that are not `async` may wait for a disk: call them in a thread.

    Answers are JSON, as from the REST routes. A refusal is a `FinetoothError` with one line. A missing object and
    another tenant's object give the same error.
    """

    @property
    def context(self) -> CommandContext:
        """The context that makes tokenizers and renderers."""
        ...

    @property
    def served(self) -> Mapping[str, Mapping[str, Any]]:
        """The recipe of each base model, by its served name."""
        ...

    @property
    def adapters(self) -> Mapping[str, str]:
        """Base name of each adapter that the server was started with, by adapter name."""
        ...

    def caller(self, key: str | None) -> FaceCaller:
        """The caller with this API key; None: without a key. For standard input only: the scope of an HTTP request has
        its caller.

        Raises:
            UserError: a key is needed, and this one is missing or invalid.
        """
        ...

    def open(
        self,
        caller: FaceCaller,
        *,
        base: str = "",
        sections: Mapping[str, Any] | None = None,
        checkpoint: str | None = None,
        restore_optimizer: bool = True,
    ) -> str:
        """Make a model to train; returns the id of the call that builds it. The call's `session` is the model's id.

        Args:
            base: name of a base model; empty with `checkpoint`.
            sections: `adapter`, `optimizer`, `schedule` and `train` of its recipe.
            checkpoint: start from this checkpoint and its recipe.
        """
        ...

    def submit(self, caller: FaceCaller, session: str, operation: str, arguments: Mapping[str, Any]) -> str:
        """Take the next place in the order of a model's calls; returns the call's id.

        Args:
            operation: `forward`, `backward`, `forward_backward`, `step`, `zero_grad`, `generate`, `logprobs`, `save` or
                `load`.
        """
        ...

    async def wait(self, caller: FaceCaller, call: str, seconds: float) -> Json:
        """The call: `id`, `session`, `seq`, `operation`, `state` (`queued`, `done`, `failed`), `result`, `error`; waits
        for its end, at most `seconds`. An `error` has a `message` of one line, a `category` (`user`, `server`) and an
        HTTP `status`, 502 or 504 if another server failed that this one uses."""
        ...

    def sampler(
        self, caller: FaceCaller, *, base: str = "", checkpoint: str | None = None, stack: Sequence[StackPart] = ()
    ) -> str:
        """Id of the caller's sampler of a base model, a checkpoint or a stack; made at the first request.

        Raises:
            UserError: no model, checkpoint or adapter has this name, or the parts of a stack have different bases.
        """
        ...

    def sample(
        self,
        caller: FaceCaller,
        sampler: str,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        seeded: bool,
        top_logprobs: int = 0,
        embedding: bool = False,
    ) -> str:
        """Sample a prompt; the server samples calls of all clients with the same weights together.

        Args:
            prompt: token ids.
            seeded: the client chose the seed; otherwise the server derives it from the call.
            top_logprobs: number of likeliest tokens at each of the T tokens of a completion, returned as `top_tokens`
                and `top_logprobs`, both (T, top_logprobs), best first.
            embedding: the result has the `embedding` (D,) of the prompt: the mean of its tokens' last hidden states,
                normalised to length 1. With `sampling.max_tokens` 0 no tokens are sampled.

        Returns:
            the call's id; its result has `completions`, one for each of `sampling.n`, as `finetooth_wire` writes them.
        """
        ...

    def follow(self, caller: FaceCaller, call: str) -> AsyncGenerator[FacePiece | Json | None, None]:
        """Stream the output of a sampling call from its beginning: pieces as they come, None after a while without any,
        and finally the call as `wait` returns it.

        Raises:
            UserError: the tenant's clients already follow as many calls as allowed.
        """
        ...

    def cancel(self, caller: FaceCaller, call: str) -> None:
        """Make an unfinished call fail: a waiting call at its turn, a running one before its next micro-batch or token.
        Its model is as before the call."""
        ...

    def sessions(self, caller: FaceCaller) -> Json:
        """The caller's models that are not closed: `id`, `base`, `recipe`, `created`, `calls` of each."""
        ...

    def session(self, caller: FaceCaller, id: str) -> Json:
        """One of the caller's models, as in `sessions`."""
        ...

    def close(self, caller: FaceCaller, session: str) -> None:
        """End a model; its checkpoints stay."""
        ...

    def checkpoints(self, caller: FaceCaller, session: str | None = None) -> Json:
        """The caller's checkpoints, or only those of one model."""
        ...

    def delete_checkpoint(self, caller: FaceCaller, id: str) -> None:
        """Remove a checkpoint."""
        ...

    def record(self, what: str, caller: FaceCaller, *, model: str = "", outcome: str = "") -> None:
        """Add a line to the audit record, without prompts or completions."""
        ...


class Face(Protocol):
    """A protocol of clients. A face derives from `finetooth_hooks.FaceBase`, whose `stdio` raises an error.

    Attributes:
        path: prefix of its requests, which the server passes to `app`. If another face has one of its `routes` too, all
            of them are below the face's name, `/NAME/path`, and the scope's `root_path` is `/NAME`.
        routes: its routes below `path`. `FaceBase` has none: every request is at `path` itself.
    """

    @property
    def capabilities(self) -> frozenset[str]:
        """Its optional abilities: words of `finetooth_hooks.capabilities.FACE`."""
        ...

    @property
    def path(self) -> str: ...

    @property
    def routes(self) -> tuple[FaceRoute, ...]: ...

    def refusal(self, status: int, message: str) -> Json:
        """The body of an answer that refuses a request, in the face's shape; `FaceBase` has `{"error": message}`.

        Args:
            status: HTTP's.
            message: one line.
        """
        ...

    def app(self, service: FaceService) -> tuple[Asgi, AbstractAsyncContextManager[Any]]:
        """The ASGI application, and a context manager to enter while it serves.

        The server has checked each request before: `scope["state"]["caller"]` is the `FaceCaller`.
        """
        ...

    async def stdio(self, service: FaceService) -> None:
        """Serve through standard input and output until the input ends. The caller is the process that started the
        server. Capability `stdio`."""
        ...


class PageService(Protocol):
    """The services of the board for pages. The board has checked each request: it comes from this machine or has the
    board's key, and a form comes from one of the board's own pages."""

    @property
    def token(self) -> str:
        """The value of every form's field `token`."""
        ...

    def whole(self, title: str, body: str) -> str:
        """A complete page, with the board's head, style and script.

        Args:
            title: text.
            body: HTML. Scripts and styles in it have no effect: the board forbids them.
        """
        ...

    def form(self, body: bytes) -> Mapping[str, str]:
        """The fields of a form, without the token.

        Raises:
            UserError: the token is missing or belongs to another process.
        """
        ...


class Page(Protocol):
    """Pages of the board."""

    def app(self, service: PageService) -> Asgi:
        """The ASGI application for requests below `/NAME`, the `root_path` of their scopes. The board shows a
        `FinetoothError` from it as a page."""
        ...


__all__ = ["Face", "FaceCaller", "FacePiece", "FaceRoute", "FaceService", "Page", "PageService", "StackPart"]
