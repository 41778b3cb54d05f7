"""Runs triton_interpreted*.py in a process whose Triton interprets: it reads the environment when it is imported."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed; see make kernels-test")
@pytest.mark.parametrize("part", ["", "_layers", "_conformance", "_experts", "_grids", "_integers", "_segments"])
def test_the_kernels_interpreted_on_a_cpu(part: str) -> None:
    file = Path(__file__).with_name(f"triton_interpreted{part}.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--import-mode=importlib"]
    done = subprocess.run(
        [*command, "-W", "ignore::RuntimeWarning", str(file)], env=environment, capture_output=True, text=True
    )
    summary = done.stdout.splitlines()[-1] if done.stdout else ""
    assert done.returncode == 0 and " passed" in summary and "skipped" not in summary, done.stdout[-4000:] + done.stderr
