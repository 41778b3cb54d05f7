"""The stand-in of a vLLM server, as fixtures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from vllm_stand_in import StandIn  # type: ignore[import-not-found]


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    made = StandIn()
    yield made
    made.close()


@pytest.fixture
def made_stand_in() -> Iterator[Callable[[], StandIn]]:
    """Makes several."""
    made: list[StandIn] = []

    def make() -> StandIn:
        made.append(StandIn())
        return made[-1]

    yield make
    for one in made:
        one.close()
