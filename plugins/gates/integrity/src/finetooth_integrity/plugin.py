"""Gates `finite`, `readback`, `probe` and `bound`: whether a checkpoint counts."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Gate, hookimpl


@hookimpl
def ft_gates() -> Iterator[Gate]:
    """The gates."""
    yield Gate(
        name="finite",
        build="finetooth_integrity.finite:FiniteGate",
        summary="every number in the checkpoint's tensors is finite",
        default=True,
    )
    yield Gate(
        name="readback",
        build="finetooth_integrity.readback:ReadbackGate",
        summary="every file can be read and matches the manifest",
        default=True,
    )
    yield Gate(
        name="probe",
        build="finetooth_integrity.probe:build",
        summary="the checkpoint, loaded into the engine, scores a small batch bit for bit as before",
        engine=True,
    )
    yield Gate(
        name="bound",
        build="finetooth_integrity.bound:build",
        summary="a metric stays within a bound",
        example={"metric": "loss", "max": 10.0},
    )
