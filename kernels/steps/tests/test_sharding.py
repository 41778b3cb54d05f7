"""Shares of a step's data: whole groups, all of them, as even as they go; and handles of them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import Any

import numpy as np
from finetooth_hooks import Backward, Datum, EngineBase, Forward, Handle, Stepped
from finetooth_steps.sharding import ShardedEngine, shares
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.integers(1, 3), max_size=9), st.integers(1, 5))
def test_shares_are_whole_groups_and_all_of_them(sizes: list[int], world: int) -> None:
    datum = Datum.from_tokens([1, 2, 3])
    data = [replace(datum, group=f"{group}") for group, size in enumerate(sizes) for _ in range(size)]
    found = shares(data, world)
    assert len(found) == world
    assert [at for share in found for at in share] == list(range(len(data)))
    of_ranks = [{data[at].group for at in share} for share in found]
    assert sum(map(len, of_ranks)) == len(sizes)  # no group is at two ranks
    assert max(map(len, of_ranks)) - min(map(len, of_ranks)) <= 1


class Meeting:
    """A line between threads."""

    def __init__(self, rank: int, world: int, barrier: Barrier, given: dict[int, Any]) -> None:
        self.rank, self.world, self._barrier, self._given = rank, world, barrier, given

    def gather(self, value: Any) -> list[Any]:
        self._given[self.rank] = value
        self._barrier.wait(10)
        values = [self._given[rank] for rank in range(self.world)]
        self._barrier.wait(10)
        return values


class Told(EngineBase):
    """Keeps what it is asked for; the log-probability of a target is the number of its datum's tokens."""

    def __init__(self) -> None:
        self.forwards: list[list[str]] = []
        self.backwards: list[tuple[int, Any]] = []

    capabilities = frozenset({"handles", "gradients", "unheard-of"})  # type: ignore[assignment]

    def forward(self, data: Sequence[Datum], loss: Any = None, **how: Any) -> Forward:
        self.forwards.append([f"{datum.id}@{datum.place}" for datum in data])
        outputs = tuple({"logprobs": np.full(len(datum), len(datum), np.float32)} for datum in data)
        return Forward(outputs, targets=len(data), handle=Handle(len(self.forwards), 0))

    def backward(self, handle: Handle, grads: Any = None, *, normalizer: Any = None) -> Backward:
        self.backwards.append((handle.id, None if grads is None else [array.tolist() for array in grads]))
        return Backward(1.0, False)

    def step(self, **how: Any) -> Stepped:
        return Stepped(1, 0.1, 1.0)


def test_a_handle_names_the_shares_of_all_ranks() -> None:
    """Every rank differentiates its own data, with its own gradients of those that the caller gives for all."""
    data = [Datum.from_tokens([1] * size, id=f"row-{size}") for size in (3, 4, 5)]
    grads = [np.full(len(datum), at, np.float32) for at, datum in enumerate(data)]
    barrier, given = Barrier(2), dict[int, Any]()

    def driven(rank: int) -> tuple[Told, Forward, Forward]:
        told = Told()
        engine = ShardedEngine(told, Meeting(rank, 2, barrier, given), slopes=None)  # type: ignore[arg-type]
        assert engine.capabilities == {"handles", "gradients"}
        first = engine.forward(data)
        assert first.handle is not None
        engine.backward(first.handle, grads)
        second = engine.forward(data[:1])
        engine.step()
        third = engine.forward(data[:1])
        assert third.handle is not None
        engine.backward(third.handle)
        return told, first, second

    with ThreadPoolExecutor(2) as threads:
        (one, first, _), (other, *others) = threads.map(driven, range(2))
    assert [output["logprobs"].tolist() for output in first.outputs] == [[2.0] * 2, [3.0] * 3, [4.0] * 4]
    assert first.targets == 3 and [len(of.outputs) for of in others] == [3, 1]
    assert one.forwards == [["row-3@0"], [], []] and other.forwards == [
        ["row-4@1", "row-5@2"],
        ["row-3@3"],
        ["row-3@0"],
    ]
    assert one.backwards == [(1, [[0.0] * 2]), (3, None)]
    assert other.backwards == [(1, [[1.0] * 3, [2.0] * 4]), (3, None)]
