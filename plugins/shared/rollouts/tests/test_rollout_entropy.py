"""Which tokens count by their entropy, and how the weight of a bonus moves, against the papers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import Datum
from finetooth_hooks.engine import Forward
from finetooth_kit import draws
from finetooth_rollouts.entropy import BONUS, MASK, EntropyBonus, highest, weighed
from finetooth_rollouts.options import RolloutOptions
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=draws(40), deadline=None)
@given(
    st.lists(st.lists(st.floats(0, 11), max_size=9), min_size=1, max_size=5),
    st.one_of(st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.floats(0, 1)),
)
def test_the_highest_are_those_at_or_above_the_quantile(sequences: list[list[float]], share: float) -> None:
    """The quantile by hand: between the two neighbours of the place (1 - share) (n - 1) of all that are sorted."""
    every = sorted(value for of in sequences for value in of)
    found = highest([np.array(of) for of in sequences], share)
    assert [len(one) for one in found] == [len(of) for of in sequences]
    if not every:
        return
    place = (1.0 - share) * (len(every) - 1)
    low = min(int(place), len(every) - 1)
    high = min(low + 1, len(every) - 1)
    bound = every[low] + (place - low) * (every[high] - every[low])
    for of, kept in zip(sequences, found, strict=True):
        for value, is_kept in zip(of, kept, strict=True):
            if abs(value - bound) > 1e-9:  # beside it a rounding decides
                assert is_kept == (value > bound)
    assert any(map(np.any, found))


def options(**more: Any) -> RolloutOptions:
    return RolloutOptions.model_validate(
        {"entropy_target": 0.5, "entropy_coef": 0.02, "entropy_coef_delta": 0.01, "entropy_coef_max": 0.04, **more}
    )


def test_the_weight_grows_while_the_entropy_is_low_and_counts_only_then() -> None:
    bonus = EntropyBonus(options())
    counted, after = [], []
    for entropy in [0.9, 0.4, 0.5, 0.3, 0.2, 0.6, 0.7, 0.8, 0.9, 0.9, 0.1]:
        counted.append(bonus.coef)
        after.append(bonus.see(entropy)["entropy_coef"])
    expected = [0.01, 0.02, 0.03, 0.04, 0.04, 0.03, 0.02, 0.01, 0.0, 0.0, 0.01]
    np.testing.assert_allclose(after, expected, atol=1e-15)
    np.testing.assert_allclose(counted, [0, 0, 0.02, 0.03, 0.04, 0.04, 0, 0, 0, 0, 0], atol=1e-15)


def test_it_goes_on_bit_for_bit() -> None:
    """Also before its first step, and through JSON."""
    random, bonus = np.random.default_rng(3), EntropyBonus(options())
    for entropy in random.uniform(0.2, 0.8, 30):
        other = EntropyBonus(options())
        other.restore(json.loads(json.dumps(bonus.state())))
        assert other.coef == bonus.coef
        assert other.see(entropy) == bonus.see(entropy)


class Engine:
    """Knows entropies, of prompts too."""

    def __init__(self, entropies: list[np.ndarray]) -> None:
        self._entropies = entropies

    def forward(self, data: Any, loss: Any, *, role: str, returns: tuple[str, ...], train: bool) -> Forward:
        assert (role, returns, train, loss.temperature) == ("policy", ("entropy",), False, 0.7)
        return Forward([{"entropy": of} for of in self._entropies], flops=5.0)


def test_what_trains_is_counted_over_the_whole_step() -> None:
    """Six tokens of answers, of which the half is 0.9, 0.8 and 0.7; the prompts' 9 is of no answer."""
    entropies = [np.array([9.0, 0.9, 0.1, 0.7]), np.array([9.0, 0.8, 0.2, 0.3])]
    data = [Datum.from_tokens([1, 2, 3, 4, 5], [0.0, 0.0, 1.0, 1.0, 1.0]) for _ in entropies]
    asked = options(top_entropy_quantile=0.5, temperature=0.7)
    bonus = EntropyBonus(asked)
    bonus.see(0.4)
    found = weighed(Engine(entropies), data, asked, bonus)  # type: ignore[arg-type]
    assert (found.flops, found.entropy) == (5.0, pytest.approx(0.8))
    assert [list(one.fields[MASK]) for one in found.data] == [[0, 1, 0, 1], [0, 1, 0, 0]]
    for one in found.data:
        np.testing.assert_allclose(one.fields[BONUS], one.fields[MASK] * bonus.coef / 3)
        assert list(one.mask) == [False, True, True, True]  # all tokens are held by a KL
    every = weighed(Engine([]), data, options(), bonus)  # type: ignore[arg-type]
    assert (every.flops, every.entropy) == (0.0, None)
    np.testing.assert_allclose(every.data[1].fields[BONUS], np.array([0, 1, 1, 1]) * bonus.coef / 6)


def test_without_a_target_it_stays() -> None:
    bonus = EntropyBonus(RolloutOptions.model_validate({"entropy_coef": 0.02}))
    assert bonus.see(0.0) == {} and bonus.coef == 0.02 and not bonus.steered


@pytest.mark.parametrize(
    ("given_", "why"),
    [
        ({"entropy_target": None}, "entropy_coef_delta, entropy_coef_max: of a bonus that is steered, so set"),
        ({"entropy_coef": 0.05}, r"entropy_coef is 0\.05, not between entropy_coef_min \(0\) and .*max \(0\.04\)"),
        ({"top_entropy_quantile": 20}, "less than or equal to 1"),
    ],
)
def test_what_does_not_go_together_is_refused(given_: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        options(**given_)
