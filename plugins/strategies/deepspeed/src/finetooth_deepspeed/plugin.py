"""DeepSpeed's ZeRO (Rajbhandari et al., 2020, arXiv:1910.02054): each rank keeps a part of the optimizer's state."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Strategy, hookimpl


@hookimpl
def ft_strategies() -> Iterator[Strategy]:
    yield Strategy(
        name="deepspeed",
        build="finetooth_deepspeed.options:build",
        summary="DeepSpeed's ZeRO: every rank holds the model and a part of the optimizer's state",
        capabilities=frozenset({"optimizer", "shards", "traffic"}),
    )
    yield Strategy(
        name="zero3",
        build="finetooth_deepspeed.options:build_zero3",
        summary="DeepSpeed's ZeRO-3: every rank holds a part of the weights, gradients and optimizer state",
        capabilities=frozenset({"shards"}),
    )
