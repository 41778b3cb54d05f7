"""Triton kernels for CUDA and ROCm: log-probabilities of the head, statistics of logits, rows of layers, experts,
attention over segments and to a cache, products in 8 bits, and tensors as integers."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Kernel, Serves, hookimpl

GPU = frozenset({"cuda"})
"""What torch calls ROCm devices too."""


ROWS = ("rms_norm", "rotary", "norm_rotary", "gated_norm", "gated_mlp", "keyed_dropout")
"""What layers do to their rows."""


@hookimpl
def ft_kernels() -> Iterator[Kernel]:
    yield Kernel(
        name="triton",
        build="finetooth_triton.provider:build",
        summary="Triton kernels, on NVIDIA GPUs from compute capability 8.0 and on ROCm",
        serves=(
            Serves(operation="linear_logprob", devices=GPU, rank=30, result="full", features=frozenset({"added"})),
            Serves(operation="logits_statistics", devices=GPU, rank=30, result="full"),
            *(Serves(operation=operation, devices=GPU, rank=30) for operation in ROWS),
            Serves(operation="packed_linear", devices=GPU, rank=30, backward=False),
            Serves(operation="fp8_linear", devices=GPU, dtypes=frozenset({"bf16", "fp32"}), rank=30),
            Serves(operation="integers", devices=GPU, rank=30, backward=False),
            # not yet timed against torch's own
            Serves(operation="grouped_matmul", devices=GPU, rank=None, features=frozenset({"fused", "split"})),
            Serves(operation="low_rank_linear", devices=GPU, rank=None, features=frozenset({"multiply"})),
            Serves(operation="segment_attention", devices=GPU, rank=None),
            Serves(operation="windowed_attention", devices=GPU, rank=None),
            Serves(operation="cached_attention", devices=GPU, rank=None, backward=False),
        ),
    )
    for form, how in (("fused", "in one kernel"), ("split", "a product and two thin ones")):
        yield Kernel(
            name=f"triton_{form}",
            build=f"finetooth_triton.provider:build_{form}",
            summary=f"triton's grouped_matmul, always with LoRA {how}",
            serves=(Serves(operation="grouped_matmul", devices=GPU, rank=None, features=frozenset({form})),),
        )
