"""The strategy by itself; that ranks train as one process does is in tests/scale."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_context.options import ContextOptions
from finetooth_context.strategy import ContextParallel
from finetooth_hooks import PlanError
from finetooth_kit import parametrize_with_checks


@parametrize_with_checks("finetooth_context.plugin", installed=True)
def test_checks(check: Any) -> None:
    check()


@pytest.mark.parametrize(("size", "world", "positions"), [("auto", 4, 4), (2, 4, 2)])
def test_positions_are_divided_and_nothing_else(size: Any, world: int, positions: int) -> None:
    line: Any = SimpleNamespace(wrap=None, digest=None, close=None)
    divided = ContextParallel(ContextOptions(size=size), line).sharding(world)
    assert (divided.positions, divided.weights, divided.shard) == (positions, 1, None)


@pytest.mark.parametrize(("size", "world"), [("auto", 1), (1, 4)])
def test_groups_of_one_divide_nothing(size: Any, world: int) -> None:
    line: Any = SimpleNamespace(wrap=None, digest=None, close=None)
    divided = ContextParallel(ContextOptions(size=size), line).sharding(world)
    assert divided.positions == 1 and divided.neighbours is None


def test_ranks_that_make_no_groups_are_refused() -> None:
    with pytest.raises(PlanError, match=r"scale.strategy.size: 3 ranks do not make groups of 2"):
        ContextOptions(size=2).neighbours(3)
