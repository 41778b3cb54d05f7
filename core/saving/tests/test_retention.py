"""Which checkpoints stay: against a count by hand, and as properties."""

from __future__ import annotations

import math

from finetooth_saving.retention import Best, mode_of, ranked, superfluous
from hypothesis import given
from hypothesis import strategies as st

FOUND = {10: {"eval/loss": 3.0}, 20: {"eval/loss": 1.0}, 30: {"eval/loss": 2.0}, 40: {"eval/loss": 2.5}, 50: {}}


def test_the_newest_and_the_best_stay() -> None:
    assert superfluous(FOUND, 2, None) == [10, 20, 30]
    assert superfluous(FOUND, 2, Best(1, "eval/loss", "min")) == [10, 30]
    assert superfluous(FOUND, 1, Best(2, "eval/loss", "max")) == [20, 30]
    assert superfluous(FOUND, 0, None) == []


def test_what_has_no_number_is_not_the_best_and_of_equals_the_earlier_is() -> None:
    found = {1: {"m": math.nan}, 2: {"m": 1.0}, 3: {"m": 1.0}, 4: {"m": math.inf}, 5: {}}
    assert ranked(found, "m", "min") == [2, 3]
    assert ranked(found, "m", "max") == [2, 3]


def test_less_of_an_error_is_better_by_any_of_its_names() -> None:
    assert {mode_of(name) for name in ("eval/mse", "eval/calibration_error", "eval/rmse")} == {"min"}
    lower = ("eval/wikitext/bits_per_byte", "eval/calls/brier_score", "eval/speech/wer", "eval/unfinished", "eval/mae")
    assert {mode_of(name) for name in lower} == {"min"}
    assert {mode_of(name) for name in ("eval/answer", "eval/pass_rate", "eval/flower", "eval/soccer")} == {"max"}


def test_which_way_is_better() -> None:
    assert [mode_of(name) for name in ("eval/loss", "eval/perplexity", "eval/exact_match", "rewards/accuracies")] == [
        "min", "min", "max", "max"
    ]  # fmt: skip


@given(
    st.dictionaries(st.integers(1, 99), st.dictionaries(st.just("m"), st.floats(allow_nan=True)), min_size=1),
    st.integers(1, 4),
    st.integers(1, 3),
)
def test_the_newest_is_never_superfluous(found: dict[int, dict[str, float]], last: int, n: int) -> None:
    gone = superfluous(found, last, Best(n, "m", "min"))
    assert max(found) not in gone
    assert len(found) - len(gone) <= last + n
