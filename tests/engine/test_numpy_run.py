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
for recipe in json.loads(sys.argv[2]):
    outcome = finetooth.run(recipe, plugins=["toy_numpy.plugin", "proof_losses.plugin"])
    loaded = [name for name in ("torch", "transformers", "mlx") if name in sys.modules]
    print(json.dumps([outcome.status, outcome.steps, loaded]))
"""


def recipe(folder: Path, name: str, budget: int) -> dict[str, Any]:
    """Small sums, trained on the toy."""
    data = {"train": str(folder / "sums.jsonl"), "eval": str(folder / "sums.jsonl")}
    return {
        "model": {"name": "toy:1"},
        "data": data,
        "method": "sft",
        "adapter": "delta",
        "backend": "numpy",
        "optimizer": {"name": "plain_adam", "learning_rate": 0.05},
        "schedule": "constant",
        "train": {"epochs": 6, "batch_size": 8, "micro_batch_tokens": budget},
        "evaluate": {"evaluators": ["loss"]},
        "trackers": ["jsonl"],
        "output": str(folder / name),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `one` and `wide` of one process, and `two` of another."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [{"prompt": f"{i % 5}+1=", "completion": f"{i % 5 + 1}"} for i in range(40)]
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for names in ({"one": 64, "wide": 4096}, {"two": 64}):
        recipes = json.dumps([recipe(folder, name, budget) for name, budget in names.items()])
        command = [sys.executable, "-c", PROGRAM, str(PLUGINS), recipes]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        for line in done.stdout.splitlines()[-len(names) :]:
            assert json.loads(line) == ["done", 30, []], "no framework is loaded"
    return folder


def losses(folder: Path, key: str = "loss") -> list[float]:
    """What the tracker wrote, in order."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line[key] for line in lines if line.get(key) is not None]


@pytest.mark.slow
def test_numpy_run_learns_without_a_framework(folder: Path) -> None:
    trained = losses(folder / "one")
    assert len(trained) == 30
    assert trained[-1] < 0.6 * trained[0]
    result = json.loads((folder / "one" / "result.json").read_text(encoding="utf-8"))
    assert result["metrics"]["eval/loss"] < 0.6 * trained[0]


def test_numpy_run_repeats_bit_for_bit(folder: Path) -> None:
    one, two = (folder / name / "artifact" / "adapter_model.safetensors" for name in ("one", "two"))
    assert one.stat().st_size > 1000
    assert one.read_bytes() == two.read_bytes()


def test_layout_changes_nothing(folder: Path) -> None:
    assert losses(folder / "wide") == pytest.approx(losses(folder / "one"), rel=1e-9)
