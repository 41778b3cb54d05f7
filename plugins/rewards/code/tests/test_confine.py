"""Each layer by itself: what a process can no longer do when that layer alone was applied."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from finetooth_code import confine

if sys.platform != "linux":
    pytest.skip("Linux's own calls", allow_module_level=True)

TRY = """
import ctypes, json, os, resource, socket, sys
from finetooth_code.confine import *
libc = ctypes.CDLL(None, use_errno=True)
found = {}

def attempt(name, function):
    try:
        found[name] = function() or "done"
    except Exception as error:
        found[name] = type(error).__name__

def call(*arguments):
    if libc.syscall(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "call")

prctl(PR_SET_NO_NEW_PRIVS, 1)
"""


def found(script: str, *arguments: str) -> dict[str, Any]:
    """What a process of its own finds."""
    command = [sys.executable, "-c", f"{TRY}{script}\nprint(json.dumps(found))", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    read: dict[str, Any] = json.loads(done.stdout)
    return read


def landlock() -> int:
    """Version that the kernel has."""
    return int(confine.LIBC.syscall(confine.LANDLOCK_CREATE, None, 0, 1))


@pytest.mark.skipif(landlock() < 4, reason="no Landlock that knows of networks")
def test_landlock(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (outside / "kept").write_text("text")
    script = """
inside, outside, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
assert restrict_files(inside)
attempt("write inside", lambda: open(f"{inside}/x", "w").write("x") and None)
attempt("write outside", lambda: open(f"{outside}/x", "w"))
attempt("change outside", lambda: open(f"{outside}/kept", "a"))
attempt("remove outside", lambda: os.remove(f"{outside}/kept"))
attempt("move out", lambda: os.rename(f"{inside}/x", f"{outside}/x"))
attempt("read outside", lambda: open(f"{outside}/kept").read())
attempt("discard", lambda: open("/dev/null", "w").write("x") and None)
attempt("connect", lambda: socket.create_connection(("127.0.0.1", port)))
attempt("start", lambda: os.execv("/bin/true", ["true"]))
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        said = found(script, str(inside), str(outside), str(server.getsockname()[1]))
    refused = {name for name, how in said.items() if how in ("PermissionError", "OSError")}
    assert refused == {"write outside", "change outside", "remove outside", "move out", "connect", "start"}
    assert said["read outside"] == "text" and (outside / "kept").read_text() == "text"


def test_seccomp() -> None:
    script = """
restrict_calls()
attempt("fork", lambda: os.waitpid(os.fork() or os._exit(0), 0) and None)
attempt("thread", lambda: __import__("threading").Thread(target=int).start())
attempt("pair", lambda: [one.close() for one in socket.socketpair()] and None)
attempt("start", lambda: os.execv("/bin/true", ["true"]))
attempt("tcp", lambda: socket.socket())
attempt("udp", lambda: socket.socket(type=socket.SOCK_DGRAM))
attempt("netlink", lambda: socket.socket(16, 3, 0))
attempt("unshare", lambda: call(CALLS_[0], 0x10000000))
attempt("clone", lambda: call(numbers["clone"], 0x10000000 | 17, 0, 0, 0, 0))
attempt("clone3", lambda: call(numbers["clone3"], 0, 0))
for name, number in zip(REFUSED, refused):
    if name not in ("reboot", "kexec_load"):
        attempt(name, lambda: call(number, 0, 0, 0, 0, 0))
"""
    script = script.replace(
        "restrict_calls()",
        "import platform; numbers = CALLS[platform.machine()]\n"
        "refused = [both[platform.machine() != 'x86_64'] for both in REFUSED.values()]\n"
        "CALLS_ = [dict(zip(REFUSED, refused))['unshare']]\nrestrict_calls()",
    )
    said = found(script)
    allowed = {"fork", "thread", "pair"}
    assert {name for name, how in said.items() if how == "done"} == allowed
    assert said.pop("clone3") == "OSError"  # unknown, so that libc falls back on clone
    assert {how for name, how in said.items() if name not in allowed} == {"PermissionError"}
    assert len(said) > len(confine.REFUSED)


def test_resource_limits(tmp_path: Path) -> None:
    script = f"""
limit_resources(dict(memory=300 << 20, processes=50, seconds=5, file=1000, files=20))
attempt("memory", lambda: bytes(1 << 30))
attempt("file", lambda: open({str(tmp_path / "x")!r}, "wb", 0).write(bytes(1000)) and open({str(tmp_path / "x")!r}, "ab", 0).write(b"x"))
attempt("files", lambda: [open("/dev/null") for _ in range(30)])
attempt("raise", lambda: resource.setrlimit(resource.RLIMIT_CORE, (1, 1)))
"""  # noqa: E501
    said = found(f"drop_capabilities()\nimport signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n{script}")
    assert said == {"memory": "MemoryError", "file": "OSError", "files": "OSError", "raise": "ValueError"}


def test_capabilities_are_gone() -> None:
    said = found("""
drop_capabilities()
found = {line.split(":")[0]: line.split()[1] for line in open("/proc/self/status") if line.startswith("Cap")}
""")
    assert {said[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
