"""AMD GPUs."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Hardware, hookimpl

from finetooth_rocm.cards import in_machine


def built() -> bool:
    """Whether the installed torch was built for ROCm."""
    from finetooth_torchshared.build import built_for

    return built_for("hip")


@hookimpl
def ft_hardware() -> Iterator[Hardware]:
    yield Hardware(
        name="rocm",
        build="finetooth_rocm.hardware:build",
        summary="an AMD GPU",
        framework="torch",
        rank=10,
        in_machine=in_machine,
        built_for=built,
        elsewhere={"gpu": {}, "amd": {}, "hip": {}},
    )
