"""Checks of strategies and launchers."""

from __future__ import annotations

from finetooth_hooks.capabilities import LAUNCHER, STRATEGY
from finetooth_hooks.entries import Launcher, Strategy
from finetooth_hooks.protocols import Rank

from finetooth_kit.checks import CheckSkipped, EntryCase, check_for, expect, fail


@check_for("strategy")
def what_a_rank_asks_for_is_there(case: EntryCase) -> None:
    """It has every method of its contract."""
    built = case.build()
    assert isinstance(case.entry, Strategy)
    for word in case.entry.capabilities - set(STRATEGY):
        fail("capabilities of the entry", word, f"words of {sorted(STRATEGY)}")
    more = {"islands": "island", "optimizer": "shard_optimizer", "shards": "sharding", "traffic": "traffic"}
    for name in ("open", "wrap", "spread", "digest", "close", *(more[word] for word in case.entry.capabilities)):
        if not callable(getattr(built, name, None)):
            fail(f"{name} of what build returns", getattr(built, name, None), "a method")


@check_for("launcher")
def a_process_knows_its_place(case: EntryCase) -> None:
    """A process that was not started as a rank has no place; one that was is one of those that were started."""
    assert isinstance(case.entry, Launcher)
    for word in case.entry.capabilities - set(LAUNCHER):
        fail("capabilities of the entry", word, f"words of {sorted(LAUNCHER)}")
    here = case.entry.here()
    place = case.build().rank()
    if not here:
        expect(place is None, "rank() where here() is False", place, "None")
        raise CheckSkipped("this process was not started as a rank")
    if not isinstance(place, Rank):
        fail("rank() where here() is True", place, "a finetooth_hooks.Rank")
    expect(0 <= place.rank < place.world, "rank() of a process", place.rank, f"below {place.world}")
