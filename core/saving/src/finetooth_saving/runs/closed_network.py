"""Runs whose network is closed: `data.classification.egress: never`.

The run's process gets a network namespace of its own, in which only the loopback device is. Nothing that it starts or
loads can leave it, whatever library it calls.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

from finetooth_hooks.errors import PlanError

_INSIDE = """
import fcntl, os, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
    fcntl.ioctl(line, 0x8914, struct.pack("16sh14x", b"lo", 1 | 0x40))  # SIOCSIFFLAGS: IFF_UP | IFF_RUNNING
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Brings the loopback device up, over which the ranks of a run speak, and becomes the command."""


def is_closed() -> bool:
    """Whether this process has no network device but loopback."""
    return {name for _, name in socket.if_nameindex()} <= {"lo"}


def run_closed(command: Sequence[str]) -> int:
    """Run a command in a network namespace of its own, and wait for it.

    Args:
        command: a program, as an absolute path, and its arguments.

    Returns:
        Its exit code.

    Raises:
        PlanError: this machine cannot close the network.
    """
    unshare = shutil.which("unshare")
    closing = [unshare or "unshare", "--user", "--map-root-user", "--net"]
    tried = subprocess.run([*closing, "true"], capture_output=True, text=True, check=False) if unshare else None
    if tried is None or tried.returncode:
        why = tried.stderr.strip().splitlines()[-1] if tried and tried.stderr.strip() else "unshare is not installed"
        raise PlanError(
            f"data.classification.egress is never, and this machine cannot close the network: {why}",
            action="allow user namespaces, or start it in a container without a network",
        )
    with subprocess.Popen([*closing, sys.executable, "-c", _INSIDE, *command]) as process:
        # a terminal sends the interrupt key to both, and the run answers it; what ends this process ends the run
        before = signal.signal(signal.SIGINT, lambda number, frame: None)
        ending = signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number))
        try:
            return process.wait()
        finally:
            signal.signal(signal.SIGINT, before)
            signal.signal(signal.SIGTERM, ending)


def facts() -> dict[str, str]:
    """What a record says of the network of this process; nothing where it has one."""
    return {"network": "closed"} if is_closed() else {}


def check_closed(*, wanted: bool) -> None:
    """
    Raises:
        PlanError: the network must be closed, and this process has one.
    """
    if wanted and not is_closed():
        raise PlanError(
            "data.classification.egress is never, and this process can reach a network",
            action="start it with ft run or ft resume, which close the network",
        )
