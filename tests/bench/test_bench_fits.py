"""Fits find costs that are known, and do not hold where the time is not linear."""

from __future__ import annotations

import pytest
from harness import fits, goals

CORES = 2


def scaling(time_of_step, *, lengths=(128, 512, 2048, 4096), batches=(1, 8, 64), rows=()) -> dict[str, object]:
    """A result file: time_of_step(tokens, pairs) gives the seconds of every step but the first, which is slow."""
    runs = []
    for curve, points in (("length", lengths), ("batch", batches)):
        for x in points:
            length, count = (x, max(1, 4096 // x)) if curve == "length" else (200, x)
            tokens, pairs = length * count, count * length**2 / 2
            seconds = time_of_step(tokens, pairs)
            runs.append(
                {
                    "contender": f"{curve} {x}",
                    "round": 0,
                    "curve": curve,
                    "x": x,
                    "train_s": 9 * seconds,
                    "step_tokens": [tokens] * 3,
                    "step_pairs": [pairs] * 3,
                    "step_s": [7 * seconds, 1.01 * seconds, 0.99 * seconds],
                }
            )
    for x, seconds in rows:
        runs.append({"contender": f"{x:,} rows", "round": 0, "curve": "rows", "x": x, "seconds": seconds})
        runs[-1] |= {"warm_s": 0.1 * seconds, "cpu_s": 1.8 * seconds, "rows_per_second": x / seconds}
        runs[-1]["peak_memory_bytes"] = 1e9
    return {"runs": runs, "config": {}, "machine": {"cores": CORES}}


def judged(file, part):
    return next(goal for goal in goals.table({"scaling": file}) if part in goal.workload)


def linear(tokens, pairs):
    return 0.05 + 1e-3 * tokens + 2e-7 * pairs


def test_costs_that_are_known_are_found():
    found = goals.steps_fit(scaling(linear))
    assert found is not None
    assert found.costs == pytest.approx({"step": 0.05, "token": 1e-3, "pair": 2e-7}, rel=1e-6)
    assert found.largest < 1e-9


def test_no_cost_is_below_zero():
    # a straight line through (1, 0.5) and (2, 2) would begin at -1
    found = fits.fit({"start": [1.0, 1.0, 1.0], "row": [1.0, 2.0, 3.0]}, [0.5, 2.0, 3.5])
    assert found.costs["start"] == 0.0 and found.costs["row"] > 0
    assert found.largest > 0.1


def test_residuals_are_relative_so_that_small_points_count():
    found = fits.fit({"row": [1.0, 1e6]}, [2.0, 1e6])
    assert found.costs["row"] == pytest.approx(1.2)  # minimises (1 - c/2)^2 + (1 - c)^2
    assert found.residuals == pytest.approx((0.4, -0.2))


def test_more_costs_than_points_are_refused():
    with pytest.raises(ValueError, match="1 points cannot give 2 costs"):
        fits.fit({"a": [1.0], "b": [2.0]}, [1.0])


@pytest.mark.parametrize(
    ("time_of_step", "met"),
    [
        (linear, True),
        (lambda tokens, pairs: 2e-3 * tokens * (1.05 if tokens > 4000 else 1.0), True),
        (lambda tokens, pairs: 1e-3 * tokens * (tokens / 200) ** 0.3, False),
        (lambda tokens, pairs: 1e-7 * tokens**2, False),
    ],
)
def test_time_of_steps_is_judged_by_the_fit(time_of_step, met):
    goal = judged(scaling(time_of_step), "time of a step")
    assert goal.met is met, goal
    assert "% off" in goal.reached


def test_a_part_of_the_range_is_shown_and_not_judged():
    goal = judged(scaling(linear, lengths=(128, 512, 2048)), "time of a step")
    assert goal.met is None and "not the whole range" in goal.reached


@pytest.mark.parametrize(
    ("seconds", "met"),
    [
        (lambda rows: 2 + 1e-4 * rows, True),
        (lambda rows: 2 + 1e-4 * rows * (0.5 if rows > 20_000 else 1), True),  # more cores for more rows
        (lambda rows: 2 + 1e-6 * rows**1.3, False),
    ],
)
def test_time_of_rows_is_judged_by_the_largest_point(seconds, met):
    points = [(rows, seconds(rows)) for rows in (1_000, 10_000, 100_000, 1_000_000)]
    goal = judged(scaling(linear, rows=points), "time to prepare")
    assert goal.met is met, goal


def test_preparing_wants_all_cores():
    points = [(rows, 2 + 1e-4 * rows) for rows in (1_000, 10_000, 100_000, 1_000_000)]
    file = scaling(linear, rows=points)
    assert judged(file, "preparing").met is True
    file["runs"][-1]["cpu_s"] = 1.0 * file["runs"][-1]["seconds"]
    goal = judged(file, "preparing")
    assert goal.met is False and "1.0 of 2 cores busy" in goal.reached


def test_without_points_nothing_is_judged():
    assert goals.steps_fit(None) is None and goals.rows_fit(scaling(linear)) is None
    assert judged(scaling(linear, lengths=(), batches=()), "time of a step").met is None
