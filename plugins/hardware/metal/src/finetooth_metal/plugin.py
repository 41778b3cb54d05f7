"""The GPU of an Apple chip."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Hardware, hookimpl


@hookimpl
def ft_hardware() -> Iterator[Hardware]:
    yield Hardware(
        name="metal",
        build="finetooth_metal.hardware:MetalHardware",
        summary="the GPU of an Apple chip, for MLX",
        framework="mlx",
        rank=20,
    )
