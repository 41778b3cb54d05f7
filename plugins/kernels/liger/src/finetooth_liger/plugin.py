"""Liger's Triton kernels (Hsu et al., 2024, arXiv:2410.10989) for CUDA and ROCm."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Kernel, Serves, hookimpl

GPU = frozenset({"cuda"})
"""What torch calls ROCm devices too."""


@hookimpl
def ft_kernels() -> Iterator[Kernel]:
    """The provider `liger`."""
    yield Kernel(
        name="liger",
        build="finetooth_liger.provider:build",
        summary="Liger's Triton kernels, on NVIDIA GPUs from compute capability 8.0 and on ROCm",
        serves=tuple(
            Serves(operation=operation, devices=GPU, rank=20) for operation in ("rms_norm", "rotary", "gated_mlp")
        ),
    )
