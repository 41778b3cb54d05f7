"""Optimizers that keep less for each weight than Adam's two moments."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Optimizer, hookimpl


@hookimpl
def ft_optimizers() -> Iterable[Optimizer]:
    """`state_bytes` is for small matrices, on whose scale nothing is saved; for a model that trains whole the plan
    counts by its sizes."""
    yield Optimizer(
        name="galore",
        build="finetooth_lowmemory.optimizers:build_galore",
        summary="Adam in a subspace of each gradient",
        state_bytes=12.0,
        update_bytes=4.0,
        tensor_bytes=8.0,
        elsewhere={"galore_adamw": {}, "galore_adamw_layerwise": {}},
    )
    yield Optimizer(
        name="galore_8bit",
        build="finetooth_lowmemory.optimizers:build_galore_8bit",
        summary="Adam in a subspace of each gradient, with moments in 8 bits",
        state_bytes=12.0,
        update_bytes=8.0,
        tensor_bytes=16.0,
        elsewhere={"galore_adamw_8bit": {}, "galore_adamw_8bit_layerwise": {}},
    )
    yield Optimizer(
        name="apollo",
        build="finetooth_lowmemory.optimizers:build_apollo",
        summary="gradients scaled by what Adam does to a random projection of them",
        state_bytes=8.0,
        update_bytes=4.0,
        tensor_bytes=8.0,
        elsewhere={"apollo_adamw": {}},
    )
    yield Optimizer(
        name="apollo_mini",
        build="finetooth_lowmemory.optimizers:build_apollo_mini",
        summary="APOLLO of rank 1: about the memory of SGD",
        state_bytes=8.0,
        update_bytes=4.0,
        tensor_bytes=8.0,
    )
    yield Optimizer(
        name="adam_mini",
        build="finetooth_lowmemory.optimizers:build_adam_mini",
        summary="Adam with one second moment for each output of a layer",
        state_bytes=5.0,
        update_bytes=4.0,
        tensor_bytes=4.0,
    )
    yield Optimizer(
        name="adamw_4bit",
        build="finetooth_lowmemory.optimizers:build_adamw_4bit",
        summary="AdamW with moments in 4 bits",
        state_bytes=8.0,
        update_bytes=8.0,
        tensor_bytes=9.0,
        elsewhere={"adamw4bit": {}},
    )
