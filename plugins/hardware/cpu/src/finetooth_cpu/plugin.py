"""The host CPU."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Hardware, hookimpl


@hookimpl
def ft_hardware() -> Iterator[Hardware]:
    yield Hardware(
        name="cpu",
        build="finetooth_cpu.hardware:CpuHardware",
        summary="the host CPU",
        default=True,
        framework="torch",
        rank=0,
    )
