"""A real Ray cluster of two machines, which are two nodes of Ray on this one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray", reason="ray is not installed: make scale-test")


@contextmanager
def two_nodes(home: Path, cpus: int) -> Iterator[str]:
    """The address of a cluster of two nodes with `cpus` each.

    Args:
        home: a folder for what Ray writes into the user's.
    """
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        nodes = Cluster()
        try:
            for _ in range(2):
                add_node(nodes, cpus)
            yield nodes.address
        finally:
            ray.shutdown()
            nodes.shutdown()


def add_node(nodes: Any, cpus: int, tries: int = 4) -> None:
    """Ray gives a node up that has not started within 30 s, as on a busy machine."""
    for left in reversed(range(tries)):
        try:
            nodes.add_node(num_cpus=cpus, include_dashboard=False)
            return
        except Exception as error:  # of no class of its own
            if not left or "timed out" not in str(error):
                raise
