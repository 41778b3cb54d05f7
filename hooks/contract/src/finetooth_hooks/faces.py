"""Faces: protocols under which a server offers its models to clients. Pages: what a plugin adds to the board.

A face translates: a request into a call on a `FaceService`, and the call's result back. It computes nothing. A plugin
yields it from `ft_faces`, and `ft serve NAME` picks it by the entry's name.
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
"""Whatever JSON can say, as Python has it."""


@dataclass(frozen=True)
class FaceRoute:
    """A request that a face answers.

    Attributes:
        method: of HTTP.
        path: below the face's `path`, in Starlette's notation: `/models/{model:path}`.
        scopes: each of them opens it to an API key, and `admin` always does; empty: every valid key may ask. The
            service holds calls to them; here they are written down for the test that holds every route against them.
    """

    method: str
    path: str
    scopes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FacePiece:
    """Tokens that follow each other in one completion of a call that samples.

    Attributes:
        completion: which one, from 0.
        index: place of the first of them in the completion.
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
        adapter: name of one that the server was started with; empty: it is a checkpoint.
        checkpoint: id of the caller's; empty: it is an adapter of the server.
    """

    adapter: str = ""
    checkpoint: str = ""
    weight: float = 1.0


class FaceCaller(Protocol):
    """Who calls."""

    @property
    def tenant(self) -> str: ...

    def may(self, scope: str) -> bool:
        """Whether the key has the scope."""
        ...


class FaceService(Protocol):
    """What a face may ask of a server. Methods that are not `async` may wait for a disk: call them in a thread.

    Answers are JSON, as the REST routes give them. Whatever is refused is raised as a `FinetoothError` of one line, the
    same for what is not there and what is another tenant's.
    """

    @property
    def context(self) -> CommandContext:
        """How tokenizers and renderers are made."""
        ...

    @property
    def served(self) -> Mapping[str, Mapping[str, Any]]:
        """The recipe of each base model, by the name under which it is served."""
        ...

    @property
    def adapters(self) -> Mapping[str, str]:
        """Name of the base of each adapter that the server was started with, by the adapter's own name."""
        ...

    def caller(self, key: str | None) -> FaceCaller:
        """Who calls with this API key; None: without one. For what comes by standard input: the caller of a request
        stands in its scope.

        Raises:
            UserError: no valid key, and one is needed.
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
            checkpoint: begin with this one, and with the recipe that it was made with.
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
        """The call: `id`, `session`, `seq`, `operation`, `state` (`queued`, `done`, `failed`), `result`, `error`;
        waits for its end, at most `seconds`. An `error` has a `message` in one line, a `category` (`user`, `server`)
        and a `status`: what HTTP calls it, 502 or 504 where another server failed that this one asks."""
        ...

    def sampler(
        self, caller: FaceCaller, *, base: str = "", checkpoint: str | None = None, stack: Sequence[StackPart] = ()
    ) -> str:
        """Id of the caller's sampler of a base model, a checkpoint or a stack; made when it is first asked for.

        Raises:
            UserError: nothing has this name, or the parts of a stack have different bases.
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
        """Sample a prompt; calls of all clients that read the same weights are written together.

        Args:
            prompt: token ids.
            seeded: the client chose the seed; without one the call's own is taken.
            top_logprobs: so many likeliest tokens come with each completion where its T tokens were written:
                `top_tokens` and `top_logprobs`, both (T, top_logprobs), best first.
            embedding: the result has the `embedding` (D,) of the prompt: the mean of its tokens' last hidden states, of
                length 1. With `sampling.max_tokens` 0 nothing is written.

        Returns:
            the call's id; its result has `completions`, one for each of `sampling.n`, as `finetooth_wire` writes them.
        """
        ...

    def follow(self, caller: FaceCaller, call: str) -> AsyncGenerator[FacePiece | Json | None, None]:
        """What a call that samples writes, from its beginning: pieces as they come, None where nothing came for a
        while, and at the end the call as `wait` gives it.

        Raises:
            UserError: as many of the tenant's clients as may follow calls already do.
        """
        ...

    def cancel(self, caller: FaceCaller, call: str) -> None:
        """Let a call fail that is not finished: where it waits when its turn comes, else before its next micro-batch or
        token. Its model is as it was before."""
        ...

    def sessions(self, caller: FaceCaller) -> Json:
        """The caller's models that are not closed: `id`, `base`, `recipe`, `created`, `calls` of each."""
        ...

    def session(self, caller: FaceCaller, id: str) -> Json:
        """One of them."""
        ...

    def close(self, caller: FaceCaller, session: str) -> None:
        """End a model; its checkpoints stay."""
        ...

    def checkpoints(self, caller: FaceCaller, session: str | None = None) -> Json:
        """The caller's checkpoints, of one model if asked."""
        ...

    def delete_checkpoint(self, caller: FaceCaller, id: str) -> None:
        """Remove a checkpoint."""
        ...

    def record(self, what: str, caller: FaceCaller, *, model: str = "", outcome: str = "") -> None:
        """Add a line to the audit record, without content."""
        ...


class Face(Protocol):
    """A protocol of clients. A face derives from `finetooth_hooks.FaceBase`, where `stdio` refuses.

    Attributes:
        path: of its requests; the server sends what comes there to `app`. Where `routes` are given and one of them is
            another face's as well, all of them are served below the face's name, `/NAME/path`, and the scope's
            `root_path` is `/NAME`.
        routes: what it answers below `path`. `FaceBase` has none: every request comes to `path` itself.
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
        """What answers, and what must be entered while it does.

        The server has checked a request before it comes here: `scope["state"]["caller"]` is who calls, a `FaceCaller`.
        """
        ...

    async def stdio(self, service: FaceService) -> None:
        """Serve through standard input and output until the input ends. The caller is the process that started the
        server. Capability `stdio`."""
        ...


class PageService(Protocol):
    """What pages may ask of the board. It has let a request through: from this machine or with the board's key, and a
    form only from one of the board's own pages."""

    @property
    def token(self) -> str:
        """What every form carries in its field `token`."""
        ...

    def whole(self, title: str, body: str) -> str:
        """A whole page, with the board's head, style and script.

        Args:
            title: text.
            body: HTML. Scripts and styles in it do nothing: the board allows none.
        """
        ...

    def form(self, body: bytes) -> Mapping[str, str]:
        """The fields of a form, without the token.

        Raises:
            UserError: the token is missing or another process's.
        """
        ...


class Page(Protocol):
    """Pages of the board."""

    def app(self, service: PageService) -> Asgi:
        """What answers requests below `/NAME`, which is the `root_path` of their scopes. A `FinetoothError` that it
        raises is shown as a page."""
        ...


__all__ = ["Face", "FaceCaller", "FacePiece", "FaceRoute", "FaceService", "Page", "PageService", "StackPart"]
