"""How often is said in words, and when it is due."""

from __future__ import annotations

from typing import Any

import pytest
from finetooth_recipes.cadence import Cadence, Clock, parse


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (0, Cadence()),
        (50, Cadence(steps=50)),
        ("50", Cadence(steps=50)),
        ("50 steps", Cadence(steps=50)),
        ("1 step", Cadence(steps=1)),
        ("10 minutes", Cadence(seconds=600)),
        ("90 s", Cadence(seconds=90)),
        ("1.5 h", Cadence(seconds=5400)),
        ("epoch", Cadence(epochs=1)),
        ("0.5 epochs", Cadence(epochs=0.5)),
    ],
)
def test_words(said: Any, meant: Cadence) -> None:
    assert parse(said) == meant


@pytest.mark.parametrize("said", ["often", "0 steps", "1.5 steps", "-3", True, "10 parsecs", "", "step 50", 2.5])
def test_what_is_no_cadence_is_refused(said: Any) -> None:
    with pytest.raises(ValueError, match="expected a number of steps"):
        parse(said)


def test_a_number_below_zero_is_refused_as_such() -> None:
    with pytest.raises(ValueError, match="must be at least 0, got -3"):
        parse(-3)


def test_steps_are_counted_over_the_whole_run() -> None:
    clock = Clock(Cadence(steps=3), 0.0)
    assert [step for step in range(1, 10) if clock.due(step, 0.0, 0.0)] == [3, 6, 9]


def test_time_counts_from_the_last_save() -> None:
    clock = Clock(Cadence(seconds=10), 100.0)
    assert [now for now in (105.0, 111.0, 112.0, 121.0, 122.0) if clock.due(1, 0.0, now)] == [111.0, 121.0]


def test_an_epoch_is_over_with_its_last_step_and_after_a_resume_it_is_not_over_again() -> None:
    clock = Clock(Cadence(epochs=1), 0.0)
    epochs = [n / 7 for n in range(1, 22)]
    assert [n for n, epoch in enumerate(epochs, 1) if clock.due(n, epoch, 0.0)] == [7, 14, 21]
    resumed = Clock(Cadence(epochs=1), 0.0, epoch=1.0)
    assert not resumed.due(8, 8 / 7, 0.0)
    half = Clock(Cadence(epochs=0.5), 0.0)
    assert [n for n in range(1, 9) if half.due(n, n / 4, 0.0)] == [2, 4, 6, 8]


def test_how_many_there_will_be() -> None:
    assert parse("3 steps").times(10, 1.0) == 3
    assert parse("epoch").times(None, 2.5) == 2
    assert parse("10 minutes").times(100, 1.0) == 1
    assert parse(0).times(100, 1.0) == 0


def test_clocks_of_ranks_agree_by_time_alone() -> None:
    """One that is asked says what another measured; nobody is asked of steps."""
    asked: list[bool] = []

    def other(own: bool) -> bool:
        asked.append(own)
        return not own

    clock = Clock(parse("1 minute"), 0.0, agreed=other)
    assert [clock.due(1, 0.0, 1.0), clock.due(2, 0.0, 100.0)] == [True, False]
    assert asked == [False, True]
    assert Clock(parse("2 steps"), 0.0, agreed=other).due(2, 0.0, 100.0) and len(asked) == 2
