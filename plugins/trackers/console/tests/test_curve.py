"""The chart: dots where the values are."""

from __future__ import annotations

import math

import pytest
from finetooth_console.curve import chart


def dots(lines):
    """Column by column, the rows (0 is the top) of the dots that are set."""
    found = {}
    for row, line in enumerate(line.split("┤")[1] for line in lines[:-1]):
        for column, character in enumerate(line):
            bits = ord(character) - 0x2800
            for bit, (x, y) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3)]):
                if bits >> bit & 1:
                    found.setdefault(column * 2 + x, set()).add(row * 4 + y)
    return found


def test_a_straight_line_is_straight():
    lines = chart(range(1, 127), [float(126 - i) for i in range(126)], width=72, height=8)
    columns = dots(lines)
    assert sorted(columns) == list(range(126))
    for x, rows in columns.items():
        assert all(abs(y - x * 31 / 125) <= 1 for y in rows), x


def test_labels_are_the_ends_of_both_axes():
    lines = chart([10, 20, 30], [3.0, 1.0, 2.0], width=40, height=4)
    assert len(lines) == 5
    assert lines[0].split("┤")[0].strip() == "3"
    assert lines[3].split("┤")[0].strip() == "1"
    assert lines[4].split() == ["step", "10", "30"]
    assert all(len(line) == 40 for line in lines)


def test_more_values_than_columns_are_averaged():
    lines = chart(range(10_000), [i % 2 for i in range(10_000)], width=30, height=4)
    low, high = float(lines[3].split("┤")[0]), float(lines[0].split("┤")[0])
    assert 0.45 < low <= high < 0.55


@pytest.mark.parametrize("values", [[], [1.0], [math.nan, 1.0], [math.inf, math.nan]])
def test_too_little_to_draw(values):
    assert chart(range(len(values)), values) == []


def test_not_finite_values_are_left_out():
    lines = chart([1, 2, 3, 4], [2.0, math.nan, math.inf, 1.0], width=30, height=4)
    assert lines == chart([1, 4], [2.0, 1.0], width=30, height=4)


def test_a_constant_is_a_flat_line():
    rows = dots(chart([1, 50], [1.0, 1.0], width=30, height=4)).values()
    assert len(set().union(*rows)) == 1
