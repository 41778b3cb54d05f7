"""NVIDIA GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from finetooth_hooks import Hardware, hookimpl
from finetooth_torchshared.build import built_for

from finetooth_cuda.cards import in_machine


@hookimpl
def ft_hardware() -> Iterator[Hardware]:
    yield Hardware(
        name="cuda",
        build="finetooth_cuda.hardware:build",
        summary="an NVIDIA GPU",
        framework="torch",
        rank=10,
        in_machine=in_machine,
        built_for=partial(built_for, "cuda"),
        elsewhere={"gpu": {}, "nvidia": {}},
    )
