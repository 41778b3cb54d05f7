"""The GPU of an Apple chip, for torch."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Hardware, hookimpl


@hookimpl
def ft_hardware() -> Iterator[Hardware]:
    yield Hardware(
        name="mps",
        build="finetooth_mps.hardware:MpsHardware",
        summary="the GPU of an Apple chip, for torch; only if a recipe names it",
        framework="torch",
        rank=-1,  # below the CPU's
    )
