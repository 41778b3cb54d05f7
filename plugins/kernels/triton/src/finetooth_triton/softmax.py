"""What the kernels share: logits from the head's linear output, and the online softmax. Imports Triton."""

# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call,import-not-found,import-untyped,misc"

from __future__ import annotations

import triton
import triton.language as tl

LOWEST = tl.constexpr(-1000.0)
"""exp() of it is 0: it stands in for -inf (an entry switched off, or beyond the vocabulary), where 0 * inf is NaN."""
NEGATIVE_INFINITY = tl.constexpr(float("-inf"))
SERIES_BELOW = tl.constexpr(0.2)
"""Below it, four terms of tanh's series are exact to float32, and 1 - exp(-2x) no longer is."""


@triton.jit
def capped(linear, inner, outer, HAS_SOFTCAP: tl.constexpr):
    """Logits: outer * tanh(inner * linear), or inner * linear without a softcap."""
    x = linear * inner
    if HAS_SOFTCAP:
        magnitude = tl.abs(x)
        decay = tl.exp(-2.0 * magnitude)
        square = x * x
        series = 1.0 + square * (-1.0 / 3.0 + square * (2.0 / 15.0 - square * (17.0 / 315.0)))
        large = (1.0 - decay) / (1.0 + decay)
        x = outer * tl.where(magnitude < SERIES_BELOW, x * series, tl.where(x < 0.0, -large, large))
    return x


@triton.jit
def damping(linear, inner):
    """The softcap's own derivative, 1 - tanh(inner * linear)^2, written so that nothing cancels."""
    decay = tl.exp(-2.0 * tl.abs(linear * inner))
    return 4.0 * decay / ((1.0 + decay) * (1.0 + decay))


@triton.jit
def fold(peak, total, weighted, logits, top, WITH_ENTROPY: tl.constexpr):
    """Take a tile of logits (R, C), largest `top` (R,), into the running sums of its rows.

    peak is the largest logit z so far, total = sum(exp(z - peak)), weighted = sum(exp(z - peak) * (z - peak)). With
    logarithms relative to the peak, both sums are free of cancellation however large the logits are.
    """
    highest = tl.maximum(peak, top)
    # A row of nothing but -inf so far: any finite shift will do.
    shift = tl.where(highest == NEGATIVE_INFINITY, 0.0, highest)
    above = logits - shift[:, None]
    exponentials = tl.exp(above)
    rescale = tl.exp(peak - shift)
    if WITH_ENTROPY:
        drop = tl.maximum(peak - shift, LOWEST)
        here = tl.sum(exponentials * tl.maximum(above, LOWEST), 1)
        weighted = rescale * (weighted + drop * total) + here
    total = rescale * total + tl.sum(exponentials, 1)
    return highest, total, weighted


@triton.jit
def logit_gradient(logits, peak, log_total, sum_d, entropy, d_entropy, WITH_ENTROPY: tl.constexpr):
    """Gradient of sum_k d_k logprob_k + d_entropy * entropy for the logits, but for the targets' own d_k."""
    log_p = (logits - peak[:, None]) - log_total[:, None]
    p = tl.exp(log_p)
    factor = -sum_d[:, None]
    if WITH_ENTROPY:
        factor = factor - d_entropy[:, None] * (tl.maximum(log_p, LOWEST) + entropy[:, None])
    return p * factor
