"""Shares of a step's data: whole groups, all of them, as even as they go."""

from __future__ import annotations

from dataclasses import replace

from finetooth_hooks import Datum
from finetooth_steps.sharding import shares
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
