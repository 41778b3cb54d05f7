"""Builders of what this package brings: kernels, the stream decoder made of them, and the attention `native`.

They import torch when they build, which who asks for the options does not need.
"""

from __future__ import annotations

from finetooth_hooks import PlanError
from finetooth_hooks.compute.attention import Attention
from finetooth_hooks.protocols import Kernel


def build() -> Kernel:
    """The compiled kernels, which are compiled now if they were never on this machine.

    Raises:
        PlanError: `FT_NATIVE_ISA` names what this machine cannot run.
    """
    from finetooth_native import operations
    from finetooth_native.build import NARROW, NARROWER, available, wrong_isa

    if wrong := wrong_isa():
        raise PlanError(wrong, action=f"set {NARROW} to one of {', '.join(NARROWER)} that the CPU can do, or unset it")
    answer = available()
    missing = "" if answer.available else answer.reason
    return Kernel(
        {
            "linear_logprob": operations.linear_logprob,
            "logits_statistics": operations.logits_statistics,
            "rms_norm": operations.rms_norm,
            "rotary": operations.rotate,
            "norm_rotary": operations.norm_rotary,
            "gated_mlp": operations.gated,
            "keyed_dropout": operations.keyed_dropout,
            "low_rank_linear": operations.low_rank_linear,
            "matmul_rounded_once": operations.mm,
            "accumulate": operations.accumulate,
            "segment_attention": operations.segment_attention,
            "cached_attention": operations.CachedAttention.ready,
            "packed_linear": operations.FewRows.pack,
        },
        answer.reason,
        lambda operation, device, dtype: missing,
    )


def build_decoder() -> Kernel:
    """The provider `native_stream`. What its layers consist of comes from the providers of those operations."""
    from finetooth_kernels.segment_attention import available

    from finetooth_native.stream_decoder import StreamDecoder

    def missing(operation: str, device: str, dtype: str) -> str:
        answer = available(device)
        if answer.available and not device.startswith("cpu") and dtype not in ("bf16", "fp16"):
            return "flash attention on a GPU takes bf16 and fp16 alone"
        return "" if answer.available else answer.reason

    return Kernel({"stream_decoder": StreamDecoder}, missing=missing)


def build_named_decoder() -> Kernel:
    """The provider `native_layers`: the same on any GPU, whatever computes attention there."""
    from finetooth_native.stream_decoder import StreamDecoder

    return Kernel({"stream_decoder": StreamDecoder}, "never run on such a GPU unless native_stream serves it too")


def build_attention() -> Attention:
    """Attention by the compiled kernels.

    Raises:
        PlanError: this machine has no compiled kernels.
    """
    from finetooth_native.build import available
    from finetooth_native.rows_of_sequences import attend

    answer = available()
    if not answer.available:
        raise PlanError(f"backend.attention=native: {answer.reason}", action="set backend.attention to auto")
    return attend
