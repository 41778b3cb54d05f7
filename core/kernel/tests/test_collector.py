"""The collector of reference cycles is off while loading, and afterwards as it was."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest
from finetooth_core.plugins.collector import paused_collector


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    enabled = gc.isenabled()
    yield
    gc.unfreeze()
    (gc.enable if enabled else gc.disable)()


class Cycle:
    """Refers to itself, so that only the collector can free it."""

    def __init__(self) -> None:
        self.itself = self


def test_nothing_is_collected_while_entered() -> None:
    gc.enable()
    collections = []
    gc.callbacks.append(lambda phase, info: collections.append(phase))
    try:
        with paused_collector():
            kept: list[list[int]] = [[] for _ in range(5 * gc.get_threshold()[0])]
            assert not gc.isenabled()
            during = list(collections)
    finally:
        gc.callbacks.pop()
    assert gc.isenabled()
    assert kept and during == []


def test_what_was_made_meanwhile_is_old_and_still_collected() -> None:
    gc.enable()
    gc.collect()
    with paused_collector():
        cycle = Cycle()
        alive = weakref.ref(cycle)
        del cycle
    gc.collect(1)  # the two younger generations
    assert alive() is not None
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert alive() is None


def test_it_is_on_again_after_an_error_and_after_the_outermost_of_several() -> None:
    gc.enable()
    with paused_collector():
        with pytest.raises(ValueError, match="inner"), paused_collector():
            raise ValueError("inner")
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_collector_that_is_off_stays_off() -> None:
    gc.disable()
    with paused_collector():
        pass
    assert not gc.isenabled()


def test_what_the_caller_froze_stays_frozen() -> None:
    """In a process of its own: here, threads of the test runner free what is frozen meanwhile."""
    program = """
import gc
import subprocess
import sys
from finetooth_core.plugins.collector import paused_collector
gc.freeze()
frozen = gc.get_freeze_count()
with paused_collector():
    pass
assert gc.get_freeze_count() >= frozen > 0
"""
    subprocess.run([sys.executable, "-c", program], check=True)
