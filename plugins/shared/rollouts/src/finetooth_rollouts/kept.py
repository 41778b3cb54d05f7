"""Log-probabilities among the tokens that sampling kept.

`top_k`, `top_p`, `min_p` and a form (`guided`) leave some tokens out, and what is drawn is drawn among the rest. A
policy that is trained on it is asked for the same: among the same tokens, whatever it would leave out now (the sampling
mask is kept, as in DeepSeek-AI, 2025, arXiv:2512.02556).
"""

from __future__ import annotations

from finetooth_hooks import arrays as xp
from finetooth_hooks.arrays import Array

NOTHING = -1e30
"""A finite stand-in for the logarithm of 0."""

ALMOST_ALL = -1e-6
"""Logarithm of the most probability that left-out tokens are taken to have: what is left is not 0 for its rounding."""


def renormalised(logprobs: Array, kept: Array | None) -> Array:
    """(..., K) log-probabilities, that of the drawn token first, to (...), the drawn one's among those kept.

    Args:
        logprobs: (..., K); without `kept` (...), which is returned as it is.
        kept: (..., K), 1 for the tokens that were kept, the drawn one among them, and 0 for padding. Where the drawn
            one has 2, all tokens were kept but those that have -1.
    """
    if kept is None:
        return logprobs
    lacking = xp.logsumexp(xp.where(kept < 0, logprobs, NOTHING), axis=-1)
    rest = xp.log1p(-xp.exp(xp.minimum(lacking, ALMOST_ALL)))
    among = xp.logsumexp(xp.where(kept > 0, logprobs, NOTHING), axis=-1)
    return logprobs[..., 0] - xp.where(kept[..., 0] > 1, rest, among)
