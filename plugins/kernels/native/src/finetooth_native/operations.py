"""The operations of `finetooth_kernels`, with compiled kernels for the tensors that those can read."""

from __future__ import annotations

from functools import partial

from finetooth_kernels import dropout as _dropout
from finetooth_kernels import gated as _gated
from finetooth_kernels import linear_logprob as _linear_logprob
from finetooth_kernels import logits as _logits
from finetooth_kernels import low_rank_linear as _low_rank_linear
from finetooth_kernels import mm as _mm
from finetooth_kernels import rms_norm as _rms_norm
from finetooth_kernels import rotary as _rotary
from finetooth_kernels import sums as _sums

from finetooth_native.build import COMPILED
from finetooth_native.cached_attention import CachedAttention
from finetooth_native.few_rows import FewRows
from finetooth_native.segment_attention import segment_attention

__all__ = [
    "CachedAttention",
    "FewRows",
    "accumulate",
    "add_",
    "gated",
    "keyed_dropout",
    "linear_logprob",
    "logits_statistics",
    "low_rank_linear",
    "mm",
    "most_likely",
    "norm_rotary",
    "residual_norm",
    "rms_norm",
    "rotate",
    "scaled",
    "segment_attention",
    "selective_log_softmax",
    "sums_wide",
]

accumulate = partial(_sums.accumulate, compiled=COMPILED)
add_ = partial(_sums.add_, compiled=COMPILED)
gated = partial(_gated.gated, compiled=COMPILED)
keyed_dropout = partial(_dropout.keyed_dropout, compiled=COMPILED)
linear_logprob = partial(_linear_logprob.linear_logprob, compiled=COMPILED)
logits_statistics = partial(_logits.logits_statistics, compiled=COMPILED)
low_rank_linear = partial(_low_rank_linear.low_rank_linear, compiled=COMPILED)
mm = partial(_mm.mm, compiled=COMPILED)
most_likely = partial(_logits.most_likely, compiled=COMPILED)
norm_rotary = partial(_rotary.norm_rotary, compiled=COMPILED)
residual_norm = partial(_rms_norm.residual_norm, compiled=COMPILED)
rms_norm = partial(_rms_norm.rms_norm, compiled=COMPILED)
rotate = partial(_rotary.rotate, compiled=COMPILED)
scaled = partial(_sums.scaled, compiled=COMPILED)
selective_log_softmax = partial(_logits.selective_log_softmax, compiled=COMPILED)
sums_wide = partial(_mm.sums_wide, compiled=COMPILED)
