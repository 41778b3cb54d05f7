"""Where the system refuses a process the tiles' state, the compiled kernels multiply pairs instead."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from finetooth_native import build as native

REFUSES = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <sys/syscall.h>

long syscall(long number, ...) {
    static long (*real)(long, ...);
    va_list given;
    long a[6];
    va_start(given, number);
    for (int i = 0; i < 6; ++i) a[i] = va_arg(given, long);
    va_end(given);
    if (!real) real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    if (number == SYS_arch_prctl && a[0] == 0x1023) {
        errno = EPERM;
        return -1;
    }
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
"""

SUMS = """
import torch
from finetooth_native.operations import mm, sums_wide
# tiles add the even inputs of 32 before the odd ones, pairs add one pair after the other
x = torch.zeros(40, 64, dtype=torch.bfloat16)
x[:, :3] = torch.tensor([2.0**24, 1.0, -(2.0**24)])
print(sums_wide(x), mm(x, torch.ones(64, 40, dtype=torch.bfloat16)).unique().tolist())
"""


def sums(**environment: str) -> str:
    command = [sys.executable, "-c", SUMS]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def refused(tmp_path: Path) -> str:
    """A library that, loaded first, lets the system refuse tiles."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    limited = bool(os.environ.get("FT_NATIVE_ISA"))
    if limited or "amx_bf16" not in flags or compiler is None or not native.available().available:
        pytest.skip("takes a CPU with AMX, not limited to less, and a compiler")
    source, library = tmp_path / "refuses.c", tmp_path / "refuses.so"
    source.write_text(REFUSES)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return str(library)


def test_pairs_are_multiplied_where_tiles_are_refused(refused: str) -> None:
    assert sums() == "True [1.0]"
    assert sums(LD_PRELOAD=refused) == "True [0.0]"


@pytest.mark.slow
def test_kernels_agree_with_float64_where_tiles_are_refused(refused: str) -> None:
    here = Path(__file__).parent
    files = [str(here / name) for name in ("test_mm.py", "test_few_rows.py", "test_native_attention.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", "float64 or gradients"]
    done = subprocess.run(
        command, env=os.environ | {"LD_PRELOAD": refused}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
