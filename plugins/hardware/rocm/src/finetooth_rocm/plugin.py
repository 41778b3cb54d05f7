"""AMD GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from finetooth_hooks import Hardware, hookimpl
from finetooth_torchshared.build import built_for

from finetooth_rocm.cards import in_machine


@hookimpl
def ft_hardware() -> Iterator[Hardware]:
    yield Hardware(
        name="rocm",
        build="finetooth_rocm.hardware:build",
        summary="an AMD GPU",
        framework="torch",
        rank=10,
        in_machine=in_machine,
        built_for=partial(built_for, "hip"),
        elsewhere={"gpu": {}, "amd": {}, "hip": {}},
    )
