"""Cross entropy: the negative log-likelihood of the targets."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Loss, hookimpl

from finetooth_crossentropy.relatives import RELATIVES


@hookimpl
def ft_losses() -> Iterator[Loss]:
    yield Loss(
        name="cross_entropy",
        build="finetooth_crossentropy.loss:build",
        summary="negative log-likelihood of the targets that count",
        needs=frozenset({"logprobs"}),
        together="sequence",
        proportional_to="weights",
        default=True,
    )
    yield from RELATIVES
