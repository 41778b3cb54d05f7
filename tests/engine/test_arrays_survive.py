"""A method with arrays in its state, killed and resumed, goes on bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_saving import run_state

PLUGINS = Path(__file__).parent / "plugins"
PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
import finetooth
plugins = ["toy_numpy.plugin", "replaying.plugin"]
given = json.loads(sys.argv[2])
finetooth.resume(given, plugins=plugins) if isinstance(given, str) else finetooth.run(given, plugins=plugins)
"""


def process(given: dict[str, Any] | str, kill_at: int | None = None) -> int:
    command = [sys.executable, "-c", PROGRAM, str(PLUGINS), json.dumps(given)]
    environment = {**os.environ, **({} if kill_at is None else {"FT_KILL_AT": str(kill_at)})}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def recipe(folder: Path, name: str) -> dict[str, Any]:
    return {
        "model": {"name": "toy:1"},
        "data": {"train": str(folder / "sums.jsonl")},
        "method": "replay",
        "adapter": "delta",
        "backend": "numpy",
        "optimizer": {"name": "plain_adam", "learning_rate": 0.05},
        "schedule": "constant",
        "checkpoint": {"every": 2},
        "trackers": ["jsonl"],
        "output": str(folder / name),
    }


def left(run: Path) -> tuple[bytes, list[Any], dict[str, Any]]:
    """Weights, losses, and the method's last arrays."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [line["loss"] for line in lines if line.get("loss") is not None]
    state = run_state.read(run / "checkpoints" / "step-12" / run_state.FILE).method
    weights = (run / "artifact" / "adapter_model.safetensors").read_bytes()
    return weights, losses, dict(state)


def test_a_method_with_arrays_is_the_same_run_after_a_kill(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i % 5}+1=", "completion": f"{i % 5 + 1}"} for i in range(20)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert process(recipe(tmp_path, "whole")) == 0
    killed = tmp_path / "killed"
    assert process(recipe(tmp_path, "killed"), kill_at=5) == -signal.SIGKILL
    assert process(str(killed), kill_at=9) == -signal.SIGKILL
    assert process(str(killed)) == 0
    weights, losses, state = left(tmp_path / "whole")
    found_weights, found_losses, found = left(killed)
    assert found_weights == weights and found_losses == losses and len(losses) == 12
    for name in ("priorities", "drawn"):
        np.testing.assert_array_equal(found[name], state[name], strict=True)
    assert found["drawn"].dtype == np.int16 and found["priorities"].dtype == np.float32
    assert found["counts"]["steps"] == state["counts"]["steps"] == 12
    np.testing.assert_array_equal(found["counts"]["taken"][0], state["counts"]["taken"][0], strict=True)
    listed = json.loads((killed / "checkpoints" / "step-12" / "manifest.json").read_text())["files"]
    assert "state.npz" in listed
