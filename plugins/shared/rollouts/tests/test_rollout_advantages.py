"""Advantages and weights of tokens against the papers' formulas, by hand."""

from __future__ import annotations

from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
from finetooth_hooks.rollouts import Rollout
from finetooth_rollouts.advantages import decoupled, group_relative, leave_one_out, normalised_over_batch
from finetooth_rollouts.token_weights import token_weights

GROUPS = [[1.0, 0.0, 0.5], [0.25, 0.75, 0.0], [0.1, 0.1, 0.1]]
ALL = [reward for group in GROUPS for reward in group]


def rollouts(groups: list[list[float]], parts: Any = None) -> list[Rollout]:
    """A rollout of two tokens for each reward."""
    return [
        Rollout(f"row:{g}", f"row:{g}@1", (3,), (4, 5), (-1.0, -1.0), (0, 0), "", "stop", reward=reward,
                rewards={} if parts is None else {name: scores[g][i] for name, scores in parts.items()})
        for g, group in enumerate(groups) for i, reward in enumerate(group)
    ]  # fmt: skip


def test_grpo_is_the_distance_from_the_groups_mean_in_its_deviations() -> None:
    expected = [(r - fmean(group)) / (stdev(group) + 1e-4) for group in GROUPS[:2] for r in group]
    found = group_relative(rollouts(GROUPS))
    np.testing.assert_allclose(found[:6], expected, rtol=1e-12)
    assert found[6:].tolist() == [0.0] * 3  # exactly, though 0.1 has no binary fraction
    np.testing.assert_allclose(
        group_relative(rollouts(GROUPS), scale_rewards="none")[:6], [r - fmean(g) for g in GROUPS[:2] for r in g]
    )
    batch = group_relative(rollouts(GROUPS), scale_rewards="batch")
    np.testing.assert_allclose(batch[:6], [(r - fmean(g)) / (stdev(ALL) + 1e-4) for g in GROUPS[:2] for r in g])


def test_rloo_is_the_distance_from_the_others_mean() -> None:
    expected = [r - (sum(group) - r) / 2 for group in GROUPS for r in group]
    np.testing.assert_allclose(leave_one_out(rollouts(GROUPS)), expected, atol=1e-12)
    assert leave_one_out(rollouts([[0.7], [0.2]])).tolist() == [0.0, 0.0]


def test_reinforce_plus_plus_normalises_over_the_batch() -> None:
    expected = [(r - fmean(ALL)) / (stdev(ALL) + 1e-4) for r in ALL]
    np.testing.assert_allclose(normalised_over_batch(rollouts(GROUPS)), expected, rtol=1e-12)
    centred = [r - fmean(group) for group in GROUPS for r in group]
    expected = [(c - fmean(centred)) / (stdev(centred) + 1e-4) for c in centred]
    found = normalised_over_batch(rollouts(GROUPS), baseline=True)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_gdpo_lets_rewards_of_any_scale_count() -> None:
    """Rewards of scales 1 and 100 in opposite order: with GDPO the one of more weight wins, in a sum the large one.
    One that is left out counts for nothing."""
    small = [[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]]
    large = [[-100.0 * value for value in group] for group in small]
    sums = [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(small, large, strict=True)]
    given = rollouts(sums, {"small": small, "large": large})
    found, alone = decoupled(given, {"small": 2.0, "large": 1.0}), group_relative(rollouts(small))
    assert np.corrcoef(found, alone)[0, 1] > 0.99
    assert np.corrcoef(group_relative(given), alone)[0, 1] < -0.99
    holes = [[1.0, None, 0.0], [0.0, 1.0, 0.5]]
    found = decoupled(rollouts(small, {"one": holes}), {"one": 1.0})
    n = [(1.0 - 0.5) / (stdev([1.0, 0.0]) + 1e-4), 0.0, -0.5 / (stdev([1.0, 0.0]) + 1e-4)]
    n += [(x - 0.5) / (stdev([0.0, 1.0, 0.5]) + 1e-4) for x in (0.0, 1.0, 0.5)]
    np.testing.assert_allclose(found, [(x - fmean(n)) / (stdev(n) + 1e-4) for x in n], atol=1e-12)


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        ("grpo", [1 / 6, 1 / 12]), ("sapo", [1 / 6, 1 / 12]), ("bnpo", [1 / 6, 1 / 6]), ("dapo", [1 / 9, 1 / 9]),
        ("cispo", [1 / 9, 1 / 9]), ("vespo", [1 / 9, 1 / 9]), ("dr_grpo", [1 / 24, 1 / 24]), ("luspo", [1 / 3, 1 / 3]),
    ],
)  # fmt: skip
def test_weights_hold_all_normalisation(loss_type: Any, expected: list[float]) -> None:
    """Three rollouts, of which one was cut off and masked; up to 8 tokens; 9 tokens a step of the whole batch."""
    found = token_weights(loss_type, [2, 4, 0], longest=8, whole=9.0)
    assert found == pytest.approx([*expected, 0.0])
