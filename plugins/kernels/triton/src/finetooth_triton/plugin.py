"""Triton kernels for CUDA and ROCm: log-probabilities and entropies of the head, and of logits."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Kernel, Serves, hookimpl

GPU = frozenset({"cuda"})
"""What torch calls ROCm devices too."""


@hookimpl
def ft_kernels() -> Iterator[Kernel]:
    yield Kernel(
        name="triton",
        build="finetooth_triton.provider:build",
        summary="Triton kernels, on NVIDIA GPUs from compute capability 8.0 and on ROCm",
        serves=(
            *(
                Serves(operation=operation, devices=GPU, rank=30, result="full")
                for operation in ("linear_logprob", "logits_statistics")
            ),
            Serves(operation="packed_linear", devices=GPU, rank=30, backward=False),
        ),
    )
