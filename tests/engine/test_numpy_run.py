"""A whole run through the core with the NumPy backend learns, repeats bit for bit, and loads no framework."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PLUGINS = Path(__file__).parent / "plugins"
PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
import finetooth
outcome = finetooth.run(json.loads(sys.argv[2]), plugins=["toy_numpy.plugin", "proof_losses.plugin"])
loaded = [name for name in ("torch", "transformers", "mlx") if name in sys.modules]
found = {"status": outcome.status, "steps": outcome.steps, "metrics": dict(outcome.metrics), "loaded": loaded}
print(json.dumps(found))
"""


def run(folder: Path, name: str, **train: Any) -> dict[str, Any]:
    """Train the toy in a fresh process."""
    rows = [{"prompt": f"{i % 5}+1=", "completion": f"{i % 5 + 1}"} for i in range(40)]
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = {
        "model": {"name": "toy:1"},
        "data": {"train": str(folder / "sums.jsonl"), "eval": str(folder / "sums.jsonl")},
        "method": "sft",
        "adapter": "delta",
        "backend": "numpy",
        "optimizer": {"name": "plain_adam", "learning_rate": 0.05},
        "schedule": "constant",
        "train": {"epochs": 6, "batch_size": 8, **train},
        "evaluate": {"evaluators": ["loss"]},
        "trackers": ["jsonl"],
        "output": str(folder / name),
    }
    command = [sys.executable, "-c", PROGRAM, str(PLUGINS), json.dumps(recipe)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_numpy_run_learns_without_a_framework(tmp_path: Path) -> None:
    found = run(tmp_path, "one")
    assert (found["status"], found["steps"], found["loaded"]) == ("done", 30, [])
    losses = [line["loss"] for line in lines(tmp_path / "one") if "loss" in line and "step" in line]
    assert found["metrics"]["eval/loss"] < 0.6 * losses[0]
    assert (tmp_path / "one" / "artifact" / "adapter_model.safetensors").stat().st_size > 1000


def test_numpy_run_is_repeatable_and_layout_changes_nothing(tmp_path: Path) -> None:
    for name, budget in (("one", 64), ("two", 64), ("wide", 4096)):
        run(tmp_path, name, micro_batch_tokens=budget)
    one, two = (tmp_path / name / "artifact" / "adapter_model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    trajectories = [[line["loss"] for line in lines(tmp_path / n) if line.get("loss")] for n in ("one", "wide")]
    assert trajectories[1] == pytest.approx(trajectories[0], rel=1e-9)
