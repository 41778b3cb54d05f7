"""A run that the system gives no more memory: one line that says what to change, and the last whole step is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LIMITED = """
import json, resource, sys
import finetooth
from finetooth_hooks import EngineError

said = []
session = finetooth.session(json.loads(sys.argv[1]), say=said.append)
forward_backward = session.engine.forward_backward

def limited(data, loss, **rest):
    if session.engine.weights_version < 2:
        return forward_backward(data, loss, **rest)
    size = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + 16 * 2**20, resource.RLIM_INFINITY))  # no room for so many rows
    try:
        return forward_backward(list(data) * 40, loss, **rest)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

session.engine.forward_backward = limited
try:
    session.run()
except EngineError as error:
    print(error.exit_code, error)
    print("\\n".join(said))
"""


@pytest.fixture
def tiny_model(tiny_smollm2: Path) -> Path:
    """With a vocabulary of real size, which is what takes room here."""
    return tiny_smollm2


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the limit on address space is Linux's")
def test_a_real_limit_ends_a_run_in_one_line_with_its_state_kept(recipe: Callable[..., Any], tmp_path: Path) -> None:
    made = recipe(train={"batch_size": 8, "precision": "fp32", "max_length": 256, "micro_batch_tokens": 65536})
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, json.dumps(made)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
    )
    assert done.stdout.startswith("1 forward_backward ran out of memory at step 3"), done.stdout + done.stderr[-2000:]
    assert "(in this order: lower train.micro_batch_tokens from 65536 to 32768; " in done.stdout
    folder = tmp_path / "run"
    assert f"the state after step 2, the last whole one, is in {folder / 'checkpoints/step-2'}" in done.stdout
    state = json.loads((folder / "checkpoints/step-2/state.json").read_text())
    assert (state["step"], state["method"]["batches"]["step"] if "batches" in state["method"] else 2) == (2, 2)
    assert (folder / "checkpoints/step-2/engine/state.json").is_file()
    assert (folder / "artifact/adapter_model.safetensors").is_file()
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], result["exit_code"], result["steps"]) == ("failed", 1, 2)
