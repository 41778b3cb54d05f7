"""The provider `native`: all operations that compiled kernels have a part in."""

from __future__ import annotations

from finetooth_hooks import Context, NoOptions
from finetooth_hooks.protocols import Kernel


def build(options: NoOptions, context: Context) -> Kernel:
    """The compiled kernels, which are compiled now if they were never on this machine."""
    from finetooth_native import operations  # with torch, which who asks for the options does not need
    from finetooth_native.build import available

    answer = available()
    missing = "" if answer.available else answer.reason
    return Kernel(
        {
            "linear_logprob": operations.linear_logprob,
            "logits_statistics": operations.logits_statistics,
            "rms_norm": operations.rms_norm,
            "rotary": operations.rotate,
            "gated_mlp": operations.gated,
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
