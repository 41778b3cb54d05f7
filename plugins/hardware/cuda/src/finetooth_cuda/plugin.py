"""NVIDIA GPUs."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Hardware, hookimpl

from finetooth_cuda.cards import in_machine


def built() -> bool:
    """Whether the installed torch was built for CUDA."""
    from finetooth_torchshared.build import built_for

    return built_for("cuda")


@hookimpl
def ft_hardware() -> Iterator[Hardware]:
    yield Hardware(
        name="cuda",
        build="finetooth_cuda.hardware:build",
        summary="an NVIDIA GPU",
        framework="torch",
        rank=10,
        in_machine=in_machine,
        built_for=built,
        elsewhere={"gpu": {}, "nvidia": {}},
    )
