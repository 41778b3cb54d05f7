"""What is let go of stays with the process, unless the user has told malloc something."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from finetooth_torch.device.host_memory import give_back_freed, keep_freed

SCRIPT = """
import sys
from finetooth_torch.device.host_memory import give_back_freed, keep_freed
from finetooth_torch.planning.process_memory import host_memory
import torch
if sys.argv[1] == "keep":
    assert keep_freed()
if sys.argv[1] == "back":
    assert keep_freed() and give_back_freed()
held = [torch.ones(4 * 2**20) for _ in range(12)]
before = host_memory("VmRSS")
del held
print((before - host_memory("VmRSS")) // 2**20)
"""
"""Lets go of twelve tensors of 16 MiB, and says how much went back to the system."""


def given_back(how: str) -> int:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_what_is_let_go_of_is_kept() -> None:
    import ctypes

    if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        pytest.skip("malloc is not glibc's")
    assert given_back("leave") > 150
    assert given_back("keep") < 30
    assert given_back("back") > 150


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_who_has_told_malloc_something_is_left_alone(name: str) -> None:
    assert not keep_freed({name: "1"}) and not give_back_freed({name: "1"})
