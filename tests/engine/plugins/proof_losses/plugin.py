"""DPO and BCO, as a plugin."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Loss, hookimpl

NEEDS = frozenset({"logprobs", "logprobs@reference"})


@hookimpl
def ft_losses() -> Iterator[Loss]:
    yield Loss(
        name="proof_dpo",
        build="proof_losses.dpo:build",
        summary="prefer the chosen answer to the rejected one",
        needs=NEEDS,
        together="group",
    )
    yield Loss(
        name="proof_bco",
        build="proof_losses.bco:build",
        summary="tell good answers from bad ones, around a running mean",
        needs=NEEDS,
        together="step",
        scalars=frozenset({"label"}),
    )
