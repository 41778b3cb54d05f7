"""The backend `remote`: an engine at a server."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Backend, hookimpl

from finetooth_remotebackend.capabilities import CAPABILITIES


@hookimpl
def ft_backends() -> Iterator[Backend]:
    yield Backend(
        name="remote",
        build="finetooth_remotebackend.backend:build",
        summary="an engine at a finetooth server, or at one that speaks the Tinker protocol",
        framework="torch",
        capabilities=CAPABILITIES,
        outputs=frozenset({"logprobs"}),
        remote=True,
    )
