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


def test_a_rank_0_that_did_not_come_is_no_other_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch tries again for longer than the limit, while no one listens."""
    for library in ("GLOO", "NCCL"):
        monkeypatch.setenv(f"{library}_SOCKET_IFNAME", "lo")
    monkeypatch.setattr(collective, "GRACE", 0.1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, so that no other test gets it, and not listening
        with pytest.raises(TimeoutError, match=r"^rank 0 did not listen there within 0\.2 s$"):
            collective.meeting_point(Rank(1, 2, 1, "127.0.0.1", free.getsockname()[1]), timedelta(seconds=0.2))
