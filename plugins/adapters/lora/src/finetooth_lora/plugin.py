"""LoRA: a low-rank addition to chosen linear modules (Hu et al., 2021, arXiv:2106.09685)."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Adapter, Command, hookimpl


@hookimpl
def ft_adapters() -> Iterable[Adapter]:
    """The adapter `lora`."""
    yield Adapter(
        name="lora",
        build="finetooth_lora.adapter:build",
        summary="train a low-rank addition to the linear modules; the base stays frozen",
        default=True,
        can_disable=True,
        base_frozen=True,
        accepts_quantised=True,
        example={"rank": 4},
    )


@hookimpl
def ft_commands() -> Iterable[Command]:
    """The command `ft merge`."""
    yield Command(
        name="merge",
        build="finetooth_lora.merge:command",
        summary="merge an adapter into its base model",
        section="Use",
        after_run="{run}",
    )
