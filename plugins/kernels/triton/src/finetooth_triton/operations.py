"""The operations of `finetooth_kernels` that Triton kernels compute; of logits, those that they can read."""

from __future__ import annotations

from functools import partial

from finetooth_kernels import logits as _logits

from finetooth_triton.linear_logprob import linear_logprob_triton
from finetooth_triton.logits import ROWS
from finetooth_triton.wide_linear import WideLinear

__all__ = ["WideLinear", "entropy_from_logits", "linear_logprob_triton", "logits_statistics", "selective_log_softmax"]

entropy_from_logits = partial(_logits.entropy_from_logits, rows=ROWS)
logits_statistics = partial(_logits.logits_statistics, rows=ROWS)
selective_log_softmax = partial(_logits.selective_log_softmax, rows=ROWS)
