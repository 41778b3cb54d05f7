"""The torch backend."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Backend, Command, hookimpl

from finetooth_torch.capabilities import CAPABILITIES


@hookimpl
def ft_backends() -> Iterator[Backend]:
    yield Backend(
        name="torch",
        build="finetooth_torch.backend:build",
        summary="PyTorch with transformers models, on whatever a hardware plugin serves",
        default=True,
        framework="torch",
        capabilities=CAPABILITIES,
        outputs=frozenset({"logprobs", "entropy", "hidden", "logits", "values", "scores"}),
    )


@hookimpl
def ft_commands() -> Iterator[Command]:
    yield Command(
        name="profile",
        build="finetooth_torch.profile.command:command",
        summary="show where the time of a run's recorded steps went",
        section="Use",
    )
