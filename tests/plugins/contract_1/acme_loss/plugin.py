"""The loss `acme_loss`."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Loss, hookimpl


@hookimpl
def ft_losses() -> Iterator[Loss]:
    yield Loss(
        name="acme_loss",
        build="acme_loss.loss:build",
        summary="cross entropy that looks away from what the model already knows",
        needs=frozenset({"logprobs"}),
        together="sequence",
    )
