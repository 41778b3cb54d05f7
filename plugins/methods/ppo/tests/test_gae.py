"""GAE, whitening, rewards of tokens and the price of the KL against the papers."""

from __future__ import annotations

import numpy as np
import pytest
from finetooth_ppo.gae import advantages_and_returns, token_rewards, whitened
from finetooth_ppo.kl import AdaptiveKl, FixedKl

RANDOM = np.random.default_rng(3)
LENGTHS = [7, 4, 1, 6]


@pytest.mark.parametrize(("discount", "smoothing"), [(1.0, 0.95), (0.9, 0.7), (1.0, 1.0), (0.97, 0.0)])
def test_advantages_are_the_sums_of_the_paper(discount: float, smoothing: float) -> None:
    """arXiv:1506.02438, eq. 16, term by term; with lambda 1 they are what came less the value, with 0 one step's."""
    for length in LENGTHS:
        rewards, values = RANDOM.normal(size=length), RANDOM.normal(size=length)
        found, returns = advantages_and_returns(rewards, values, discount=discount, smoothing=smoothing)
        after = np.append(values, 0.0)[1:]
        expected = [
            sum((discount * smoothing) ** (k - t) * (rewards[k] + discount * after[k] - values[k])
                for k in range(t, length))
            for t in range(length)
        ]  # fmt: skip
        np.testing.assert_allclose(found, expected, atol=1e-12)
        np.testing.assert_allclose(returns, found + values, atol=1e-15)
        if smoothing == 1.0:
            came = [sum(discount ** (k - t) * rewards[k] for k in range(t, length)) for t in range(length)]
            np.testing.assert_allclose(returns, came, atol=1e-12)


def test_a_nat_costs_at_its_token_and_the_score_comes_last() -> None:
    found = token_rewards(2.0, np.array([0.5, -1.0, 0.25]), 0.1)
    np.testing.assert_allclose(found, [-0.05, 0.1, 2.0 - 0.025])


def test_whitening_is_over_all_tokens_of_the_batch() -> None:
    parts = [RANDOM.normal(3.0, 5.0, size=n) for n in LENGTHS]
    found = np.concatenate(whitened(parts))
    assert found.mean() == pytest.approx(0.0, abs=1e-12) and found.std(ddof=1) == pytest.approx(1.0, rel=1e-8)
    kept = np.concatenate(whitened(parts, shift=False))
    assert kept.mean() == pytest.approx(np.concatenate(parts).mean()) and kept.std(ddof=1) == pytest.approx(1.0)
    assert [len(part) for part in whitened(parts)] == LENGTHS
    assert whitened([]) == [] and whitened([np.array([2.0])])[0].tolist() == [0.0]


def test_the_price_is_steered_to_the_target() -> None:
    """arXiv:1909.08593, section 2.2: by a fifth of the gain at most, less where the target is near."""
    price, fixed = AdaptiveKl(0.2, target=6.0, gain=0.1), FixedKl(0.2)
    expected = 0.2
    for kl in (60.0, 6.0, 6.6, 0.0, 5.7):
        expected *= 1 + 0.1 * float(np.clip((kl - 6.0) / 6.0, -0.2, 0.2))
        price.see(kl)
        fixed.see(kl)
        assert price.coef == pytest.approx(expected, rel=1e-12) and fixed.coef == 0.2
    again = AdaptiveKl(0.2, 6.0, 0.1)
    again.restore(price.state())
    assert again.coef == price.coef
