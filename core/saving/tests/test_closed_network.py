"""`egress: never`: a closed run reaches no network, and a machine that cannot close it says so in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from finetooth_hooks.errors import PlanError
from finetooth_saving.runs import closed_network

TRIES = """
import socket, sys
from finetooth_saving.runs.closed_network import is_closed
heard = socket.create_server(("127.0.0.1", 0))
socket.create_connection(heard.getsockname()).close()
try:
    socket.create_connection(("192.0.2.1", 80), timeout=5)
except OSError as error:
    sys.exit(7 if is_closed() and error.errno == 101 else 3)
sys.exit(4)
"""
"""Speaks over loopback, and then to an address of nobody: 101 is `Network is unreachable`."""


@pytest.fixture
def namespaces() -> None:
    if subprocess.run(["unshare", "--user", "--map-root-user", "--net", "true"], check=False).returncode:
        pytest.skip("this machine allows no user namespaces")


def test_a_closed_command_has_loopback_alone(namespaces: None) -> None:
    assert closed_network.run_closed([sys.executable, "-c", TRIES]) == 7


def test_a_process_with_a_network_is_told_to_be_started_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_network.socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0")])
    closed_network.check_closed(wanted=False)
    with pytest.raises(PlanError, match="egress is never, and this process can reach a network"):
        closed_network.check_closed(wanted=True)
    assert closed_network.facts() == {}
    monkeypatch.setattr(closed_network.socket, "if_nameindex", lambda: [(1, "lo")])
    closed_network.check_closed(wanted=True)
    assert closed_network.facts() == {"network": "closed"}


@pytest.mark.parametrize("there", [True, False])
def test_a_machine_that_cannot_close_it_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    if there:
        (tmp_path / "unshare").write_text(
            "#!/bin/sh\necho 'unshare: unshare failed: Operation not permitted' >&2; exit 1\n"
        )
        (tmp_path / "unshare").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if there else str(tmp_path))
    why = "unshare failed: Operation not permitted" if there else "unshare is not installed"
    with pytest.raises(PlanError, match=f"cannot close the network: .*{why}"):
        closed_network.run_closed([sys.executable, "-c", "print('never')"])
