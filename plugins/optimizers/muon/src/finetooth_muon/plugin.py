"""Optimizers whose steps along matrices are orthonormal."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Optimizer, hookimpl


@hookimpl
def ft_optimizers() -> Iterable[Optimizer]:
    """Muon and Dion. AdamW trains everything but matrices inside a layer; `state_bytes` is AdamW's, an upper bound; the
    plan counts with the model's sizes. The largest tensor, the embedding, is AdamW's, whose update holds nothing."""
    yield Optimizer(
        name="muon",
        build="finetooth_muon.optimizers:build_muon",
        summary="orthonormal updates made from a momentum; half of AdamW's state",
        update_bytes=4.0,
        elsewhere={"muon_adamw": {}},
    )
    yield Optimizer(
        name="dion",
        build="finetooth_muon.optimizers:build_dion",
        summary="orthonormal updates of low rank, with error feedback",
        update_bytes=4.0,
    )
