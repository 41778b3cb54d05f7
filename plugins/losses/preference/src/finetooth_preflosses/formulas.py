"""The losses of preferences: pure functions from numbers of each pair, (P,), to losses (P,).

Words: w is the chosen answer, l the rejected one; a ratio is log pi(y|x) - log pi_ref(y|x), summed over an answer's
targets; h is the logit of the preference, beta times the difference of the two ratios (or of f-divergence scores), less
the row's margin. s is the share of labels assumed to be swapped.
"""

from __future__ import annotations

import math

from finetooth_hooks import arrays as xp

Array = xp.Array


def sigmoid(h: Array, s: float = 0.0) -> Array:
    """DPO (Rafailov et al., 2023, arXiv:2305.18290, eq. 7), conservative with s > 0 (cDPO; Mitchell, 2023, "A
    note on DPO with noisy preferences and relationship to IPO"): -(1 - s) log sigmoid(h) - s log sigmoid(-h)."""
    if not s:
        return -xp.log_sigmoid(h)
    return -(1.0 - s) * xp.log_sigmoid(h) - s * xp.log_sigmoid(-h)


def robust(h: Array, s: float) -> Array:
    """rDPO (Ray Chowdhury et al., 2024, arXiv:2403.00409), unbiased if a share s of labels is swapped:
    (-(1 - s) log sigmoid(h) + s log sigmoid(-h)) / (1 - 2s)."""
    return (-(1.0 - s) * xp.log_sigmoid(h) + s * xp.log_sigmoid(-h)) / (1.0 - 2.0 * s)


def hinge(h: Array) -> Array:
    """SLiC (Zhao et al., 2023, arXiv:2305.10425) on implicit rewards, as in RSO (Liu et al., 2024,
    arXiv:2309.06657): max(0, 1 - h)."""
    return xp.relu(1.0 - h)


def ipo(difference: Array, beta: float) -> Array:
    """IPO (Azar et al., 2024, arXiv:2310.12036, eq. 17): (difference - 1 / (2 beta))^2.

    Args:
        difference: of the ratios divided by their answers' lengths, as the authors computed it.
    """
    return xp.square(difference - 1.0 / (2.0 * beta))


def exo_pair(h: Array, s: float) -> Array:
    """EXO with K = 2 (Ji et al., 2024, arXiv:2402.00856, eq. 16): KL from sigmoid(h) to the preference (1 - s, s)."""
    chosen = xp.sigmoid(h) * (xp.log_sigmoid(h) - math.log1p(-s))
    return chosen + xp.sigmoid(-h) * (xp.log_sigmoid(-h) - math.log(s))


def nca_pair(w: Array, el: Array) -> Array:
    """NCA with K = 2 (Chen et al., 2024, arXiv:2402.05369), of rewards w and l:
    -log sigmoid(w) - (log sigmoid(-w) + log sigmoid(-l)) / 2."""
    return -xp.log_sigmoid(w) - 0.5 * xp.log_sigmoid(-w) - 0.5 * xp.log_sigmoid(-el)


def sppo_hard(w: Array, el: Array, beta: float) -> Array:
    """SPPO with hard labels (Wu et al., 2024, arXiv:2405.00675, eq. 4.7 with P = 1 and 0), of ratios:
    (w - 1 / (2 beta))^2 + (l + 1 / (2 beta))^2."""
    return xp.square(w - 0.5 / beta) + xp.square(el + 0.5 / beta)


def discopop(h: Array, tau: float) -> Array:
    """DiscoPOP (Lu et al., 2024, arXiv:2406.08414, eq. 5), m = sigmoid(h / tau):
    (1 - m) (-log sigmoid(h)) + m e^-h."""
    m = xp.sigmoid(h / tau)
    return (1.0 - m) * -xp.log_sigmoid(h) + m * xp.exp(-h)


def apo_zero(w: Array, el: Array) -> Array:
    """APO-zero (D'Oosterlinck et al., 2024, arXiv:2408.06266, eq. 7), of rewards: 1 - sigmoid(w) + sigmoid(l)."""
    return 1.0 - xp.sigmoid(w) + xp.sigmoid(el)


def apo_down(w: Array, el: Array) -> Array:
    """APO-down (the same, eq. 8), of rewards: sigmoid(w) + 1 - sigmoid(w - l)."""
    return xp.sigmoid(w) + 1.0 - xp.sigmoid(w - el)


def bco(reward: Array, shift: Array | float) -> Array:
    """BCO (Jung et al., 2024, arXiv:2404.04656) of desirable answers; undesirable ones have both signs turned:
    -log sigmoid(reward - shift)."""
    return -xp.log_sigmoid(reward - shift)


def kto(reward: Array, point: Array | float) -> Array:
    """KTO (Ethayarajh et al., 2024, arXiv:2402.01306, eq. 7) of desirable answers; undesirable ones have both signs
    turned: 1 - sigmoid(reward - point).

    Args:
        point: beta times the KL to the reference, no gradient.
    """
    return 1.0 - xp.sigmoid(reward - point)


def log_odds(mean: Array) -> Array:
    """log(p / (1 - p)) of p = e^mean, mean the mean log-probability of an answer (ORPO, Hong et al., 2024,
    arXiv:2403.07691, eq. 4). p stays slightly below 1, where the value is infinite."""
    mean = xp.clip(mean, high=-1e-6)
    small = mean < -math.log(2.0)
    # each branch is exact where it is used, and finite elsewhere
    below = xp.log1p(-xp.exp(xp.where(small, mean, -1.0)))
    above = xp.log(-xp.expm1(xp.where(small, -0.5, mean)))
    return mean - xp.where(small, below, above)


def odds_ratio(w: Array, el: Array) -> Array:
    """The odds-ratio part of ORPO (eq. 7), of mean log-probabilities: -log sigmoid(log odds(w) - log odds(l))."""
    return -xp.log_sigmoid(log_odds(w) - log_odds(el))


def alpha_reward(mean: Array, alpha: float) -> Array:
    """AlphaPO (Gupta et al., 2025, arXiv:2501.03884): (1 - p^-alpha) / alpha of p = e^mean; its limit at
    alpha = 0 is the mean log-probability, SimPO's reward."""
    return mean if not alpha else -xp.expm1(xp.clip(-alpha * mean, high=80.0)) / alpha
