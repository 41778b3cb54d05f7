"""Snapshots in memory: bounded, newest kept, and what was undone goes."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetooth_hooks import EngineError, StoreError
from finetooth_hooks.checkpoints import StepSnapshot
from finetooth_memory.store import MemoryOptions, MemoryStore, build_device, build_host
from pydantic import ValidationError


class Snapshot:
    """A state that knows where it lies."""

    nbytes = 3 * 10**6

    def __init__(self, place: str = "device", error: Exception | None = None) -> None:
        self.place, self.error = place, error

    def to_host(self) -> Snapshot:
        if self.error is not None:
            raise self.error
        return Snapshot("host")

    def save(self, path: Path) -> None:
        path.mkdir()


def kept(step: int, **given) -> StepSnapshot:
    return StepSnapshot(step, Snapshot(**given), {"step": step})


def steps(store: MemoryStore) -> list[int]:
    return [one.step for one in store.kept()]


@pytest.mark.parametrize("build", [build_device, build_host])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_newest_are_kept(build, count):
    store = build(MemoryOptions(count=count), None)
    for step in range(1, 10):
        store.put(kept(step))
        assert steps(store) == list(range(max(1, step - count + 1), step + 1))


def test_only_host_copies():
    device, host = build_device(MemoryOptions(), None), build_host(MemoryOptions(), None)
    one = kept(1)
    device.put(one)
    host.put(one)
    assert device.kept()[0] is one
    assert host.kept()[0].snapshot.place == "host"
    assert host.kept()[0].state is one.state


def test_what_was_undone_goes():
    """After a rollback to step 2 the states of steps 3 and 4 belong to no run."""
    store = build_device(MemoryOptions(count=4), None)
    for step in (1, 2, 3, 4):
        store.put(kept(step))
    again = kept(3)
    store.put(again)
    assert steps(store) == [1, 2, 3]
    assert store.kept()[-1] is again


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("not enough memory: you tried to allocate 3 GB")])
def test_a_copy_that_fails_leaves_what_was_kept(error):
    store = build_host(MemoryOptions(), None)
    store.put(kept(1))
    with pytest.raises(StoreError, match=r"host memory: the state of step 2 \(3 MB\) could not be copied"):
        store.put(kept(2, error=error))
    assert steps(store) == [1]


def test_what_the_engine_says_stays_its_own():
    with pytest.raises(EngineError, match="not whole"):
        build_host(MemoryOptions(), None).put(kept(1, error=EngineError("not whole")))


def test_a_bound_of_nothing_is_refused():
    with pytest.raises(ValidationError):
        MemoryOptions(count=0)
