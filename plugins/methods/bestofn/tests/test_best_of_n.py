"""Which answers are kept, by hand."""

from __future__ import annotations

from typing import Any

import pytest
from finetooth_bestofn.method import BestOfNOptions, best
from finetooth_hooks.rollouts import Rollout
from hypothesis import given
from hypothesis import strategies as st

GROUPS = [[0.0, 1.0, 0.5, 1.0], [0.0, 0.0, 0.0, 0.0], [0.2, 0.1, 0.4, 0.3]]


def rollouts(groups: list[list[float]]) -> list[Rollout]:
    return [
        Rollout("r", str(g), (1,), (2,), (-1.0,), (0,), "", "stop", reward=reward)
        for g, group in enumerate(groups)
        for reward in group
    ]


@pytest.mark.parametrize(
    ("given_options", "kept"),
    [
        ({}, [1, 10]),  # the first of two that are equal; none where all are
        ({"keep": 2}, [1, 3, 10, 11]),
        ({"keep_equal": True}, [1, 4, 10]),
        ({"keep": 3, "threshold": 0.35}, [1, 2, 3, 10]),
        ({"keep": 4, "threshold": 0.0}, [1, 2, 3, 8, 9, 10, 11]),
    ],
)
def test_the_best_of_each_group_are_kept(given_options: dict[str, Any], kept: list[int]) -> None:
    options = {"keep": 1, "threshold": None, "keep_equal": False, **given_options}
    assert [i for i, a in enumerate(best(rollouts(GROUPS), **options)) if a] == kept


@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=4), st.integers(1, 4))
def test_none_that_is_left_is_better_than_one_that_is_kept(groups: list[list[int]], keep: int) -> None:
    found = best(rollouts([[float(r) for r in g] for g in groups]), keep=keep, threshold=None, keep_equal=True)
    for g, group in enumerate(groups):
        taken = [r for r, a in zip(group, found[4 * g : 4 * g + 4], strict=True) if a]
        assert sorted(taken) == sorted(group)[-keep:]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep": 8}, "so every answer would train"),
        ({"num_generations": 1}, "nothing to choose from"),
        ({"beta": 0.1}, "ratio"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BestOfNOptions(**options)
