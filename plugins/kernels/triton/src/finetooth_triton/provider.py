"""The provider `triton`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from finetooth_hooks.protocols import Kernel

if TYPE_CHECKING:
    from finetooth_kernels.grouped import Form


def build() -> Kernel:
    """The kernels; Triton is imported when the first one runs."""
    from finetooth_triton import (
        cached_attention,
        directions,
        eight_bits,
        grouped,
        integers,
        layers,
        operations,
        segments,
    )  # with torch, which who asks for the options does not need

    return Kernel(
        {
            "linear_logprob": operations.linear_logprob_triton,
            "logits_statistics": operations.logits_statistics,
            "cached_attention": cached_attention.CachedAttention.ready,
            "packed_linear": operations.WideLinear.pack,
            "rms_norm": layers.rms_norm_triton,
            "rotary": layers.rotary_triton,
            "norm_rotary": layers.norm_rotary_triton,
            "gated_norm": layers.gated_norm_triton,
            "gated_mlp": layers.gated_mlp_triton,
            "keyed_dropout": layers.keyed_dropout_triton,
            "low_rank_linear": directions.low_rank_linear_triton,
            "grouped_matmul": grouped.grouped_matmul_triton,
            "segment_attention": segments.segment_attention_triton,
            "windowed_attention": segments.windowed_attention_triton,
            "integers": integers.IntegerKernels,
            "fp8_linear": eight_bits.fp8_linear_triton,
        },
        "compiled for the device when they first run",
        missing,
    )


def build_fused() -> Kernel:
    """Products of experts with LoRA in one kernel."""
    return _of_experts("fused")


def build_split() -> Kernel:
    """Products of experts, then those of LoRA."""
    return _of_experts("split")


def _of_experts(form: Form) -> Kernel:
    from finetooth_triton.grouped import grouped_matmul_triton

    multiply = partial(grouped_matmul_triton, form=form)
    return Kernel({"grouped_matmul": multiply}, "compiled for the device when they first run", missing)


def missing(operation: str, device: str, dtype: str) -> str:
    """Why the kernels cannot run there; empty if they can. Interpreted ones run on a CPU, for tests."""
    import torch

    from finetooth_triton import gpu

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if gpu.interpreted() and torch.device(device).type == "cpu":
        return ""
    answer = gpu.available(device, dtypes.get(dtype))
    return "" if answer.available else answer.reason
