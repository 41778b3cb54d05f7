"""A resource server as a fixture."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from gym_stand_ins import ResourceServer


@pytest.fixture
def resources() -> Iterator[ResourceServer]:
    made = ResourceServer()
    yield made
    made.server.shutdown()
    made.server.server_close()
