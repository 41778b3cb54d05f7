"""Intervals against their formulas and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from finetooth_methods.intervals import bootstrap, calibration_error, wilson


def test_wilson_solves_its_equation() -> None:
    """Its ends are where the share lies 1.96 standard errors away (Wilson, 1927)."""
    for share, count in ((0.5, 10), (0.9, 94), (0.0, 7), (1.0, 7), (0.625, 4)):
        for end in wilson(share, count):
            away = abs(share - end) - 1.959963984540054 * (end * (1 - end) / count) ** 0.5
            assert abs(away) < 1e-7
    low, high = wilson(1.0, 7)
    assert low < 1.0 and high == 1.0
    assert wilson(0.5, 0) == (0.0, 1.0)


def test_bootstrap_of_a_mean_is_that_of_the_normal_distribution() -> None:
    random = np.random.default_rng(0)
    items = random.normal(size=400).tolist()
    low, high = bootstrap(items, lambda drawn: float(np.mean(drawn)), random)
    half = 1.96 * np.std(items) / 20
    assert low == pytest.approx(np.mean(items) - half, abs=0.02)
    assert high == pytest.approx(np.mean(items) + half, abs=0.02)


def test_calibration_error_by_hand() -> None:
    probabilities, happened = np.array([0.95, 0.95, 0.55, 0.55]), np.array([True, True, True, False])
    assert calibration_error(probabilities, happened) == pytest.approx(0.5 * 0.05 + 0.5 * 0.05)
    random = np.random.default_rng(1)
    p = random.random(20_000)
    assert calibration_error(p, random.random(20_000) < p) < 0.02
    assert calibration_error(np.full(100, 1.0), np.zeros(100, dtype=bool)) == 1.0
