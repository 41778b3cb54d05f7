"""Cross entropy: the negative log-likelihood of the targets."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Loss, hookimpl


@hookimpl
def ft_losses() -> Iterator[Loss]:
    from finetooth_crossentropy.relatives import RELATIVES  # light: only entries

    yield Loss(
        name="cross_entropy",
        build="finetooth_crossentropy.loss:build",
        summary="negative log-likelihood of the tokens that train",
        proportional_to="weights",
        default=True,
    )
    yield from RELATIVES
