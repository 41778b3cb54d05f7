"""The demo as a user runs it: what it promises is read from the files that it leaves."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCORE = "exact_match"


def read_events(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def assert_demo(run: Path) -> None:
    """What the demo must have done, from the files of its run folder.

    Raises:
        AssertionError: it did not.
    """
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    assert (result["status"], result["exit_code"]) == ("done", 0)

    steps = read_events(run, "step")
    assert [step["step"] for step in steps] == list(range(1, plan["total_steps"] + 1))
    assert result["steps"] == plan["total_steps"]
    seconds = sum(step["seconds"] for step in steps)  # recorded, whatever the machine
    assert math.isfinite(seconds) and 0 < seconds <= result["seconds"]

    scores = {event["step"]: event for event in read_events(run, "evaluation") if event["name"] == SCORE}
    before, after = scores[0], scores[plan["total_steps"]]
    assert before["rows"] == after["rows"] == plan["recipe"]["data"]["eval"]["count"]
    reached = after["metrics"][SCORE]
    assert reached == result["metrics"][f"eval/{SCORE}"]
    assert reached >= before["metrics"][SCORE] + 0.30
    assert reached > after["baselines"]["majority answer"]

    estimate, peak = sum(plan["memory"]["parts"].values()), max(step["memory"] for step in steps)
    assert abs(estimate - peak) <= 0.30 * peak, f"planned {estimate:,} bytes, needed {peak:,}"


def assert_artifact_loads(run: Path) -> None:
    """peft itself, not finetooth, puts the artifact on its base, and every tensor finds its place.

    Raises:
        AssertionError: it does not.
    """
    import finetooth
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    context = finetooth.session(run / "recipe.yaml", data=False).job.context
    base = context.loader.load(context.model.reference, framework="torch", precision="bf16", device="cpu")
    saved = load_file(run / "artifact" / "adapter_model.safetensors")
    assert saved and all(bool(torch.isfinite(tensor).all()) for tensor in saved.values())
    assert any(bool(tensor.any()) for name, tensor in saved.items() if "lora_B" in name), "nothing was trained"
    adapted = PeftModel.from_pretrained(base, str(run / "artifact"))
    held = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    assert held.keys() == saved.keys()
    assert all(torch.equal(held[name].to(saved[name].dtype), saved[name]) for name in saved)


@pytest.mark.slow
def test_the_demo_keeps_its_promises(tmp_path: Path) -> None:
    run = tmp_path / "demo"
    recipe = ROOT / "docs" / "recipes" / "quickstart.yaml"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-m", "finetooth", "run", str(recipe), "--output", str(run)],
        cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=3600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_demo(run)
    assert_artifact_loads(run)
