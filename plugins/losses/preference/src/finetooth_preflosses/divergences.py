"""f-DPO: implicit rewards under another divergence than the reverse KL (Wang et al., 2024, arXiv:2309.16240).

With u = pi(y|x) / pi_ref(y|x), the reward of an answer is beta f'(u) (table 1); constants that cancel between the two
answers of a pair are kept.
"""

from __future__ import annotations

import math
from typing import Literal

from finetooth_hooks import arrays as xp

Array = xp.Array
Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]

LARGEST = 80.0
"""Bound of exponents, so that exp stays finite in fp32."""


def score(ratio: Array, divergence: Divergence, alpha: float) -> Array:
    """f'(u) of an answer.

    Args:
        ratio: log u, any shape.
        alpha: of the alpha-divergence; at 1 it is the reverse KL.
    """
    if divergence == "forward_kl":  # f = -log u
        return 1.0 - xp.exp(xp.clip(-ratio, high=LARGEST))
    if divergence == "js_divergence":  # f' = log(2u / (1 + u))
        return math.log(2.0) + xp.log_sigmoid(ratio)
    if divergence == "alpha_divergence" and abs(alpha - 1.0) >= 1e-6:  # f' = (u^(alpha - 1) - 1) / (alpha - 1)
        return xp.expm1(xp.clip((alpha - 1.0) * ratio, high=LARGEST)) / (alpha - 1.0)
    return ratio
