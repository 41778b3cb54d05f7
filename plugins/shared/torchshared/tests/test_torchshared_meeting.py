"""Ranks that find another program at the port of rank 0."""

from __future__ import annotations

import socket
from datetime import timedelta

import pytest
from finetooth_hooks import EngineError
from finetooth_hooks.protocols import Rank
from finetooth_torchshared import collective


@pytest.mark.parametrize(
    ("rank", "why"), [(0, "another program listens there"), (1, "what listens there does not answer as rank 0 does")]
)
def test_a_port_that_another_program_has_is_named(monkeypatch: pytest.MonkeyPatch, rank: int, why: str) -> None:
    """It takes connections and says nothing, so that rank 1 would wait for an answer without an end."""
    for library in ("GLOO", "NCCL"):
        monkeypatch.setenv(f"{library}_SOCKET_IFNAME", "lo")
    monkeypatch.setattr(collective, "GRACE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            EngineError, match=f"rank {rank} cannot meet the others at 127.0.0.1:{port}: {why}"
        ) as error:
            collective.meeting_point(Rank(rank, 2, rank, "127.0.0.1", port), timedelta(seconds=0.2))
    assert "MASTER_PORT" in error.value.action
