"""A recipe that leaves to the memory what trains: checked, run, and gone on with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetooth_cpu.hardware import CpuHardware
from finetooth_hooks.protocols import HardwareFacts


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets how much memory the machine has, in bytes."""

    def set_to(size: float) -> None:
        def smaller(self: CpuHardware) -> HardwareFacts:
            facts = real(self)
            return replace(
                facts, devices=tuple(replace(one, memory=int(size), available=None) for one in facts.devices)
            )

        monkeypatch.setattr(CpuHardware, "facts", smaller)

    real = CpuHardware.facts
    return set_to


def test_the_choice_is_in_the_runs_recipe_and_outlives_more_memory(
    written: Any, ft: Any, memory: Any, tmp_path: Path, losses: Any
) -> None:
    rows = [[f"{i}?", f"{i}!"] for i in range(12)]
    train = {"max_steps": 2, "batch_size": 4, "precision": "fp32"}
    recipe = written(*rows, adapter="auto", quantization="auto", train=train, checkpoint={"every": 1})
    code, _, said = ft("check", recipe, "--json")
    assert code == 0, said
    memory(1)
    code, _, said = ft("check", recipe)
    assert code == 2 and "would take more or cannot work); " not in said
    assert "memory: the run would take" in said and "(full " in said
    assert "lora over" in said and said.count("\n") == 1
    memory(2**36)
    code, shown, said = ft("run", recipe)
    assert code == 0, said
    assert "note: adapter: auto, quantization: auto: full is taken: " in shown
    kept = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert kept["adapter"] == "full" and kept["quantization"] is None
    assert kept["train"]["gradient_checkpointing"] is False
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["picks"]["adapter"] == "finetooth-full:full" and "quantizer" not in plan["picks"]
    for given in (("resume", tmp_path / "run"), ("run", recipe, "--resume")):
        code, shown, said = ft(*given, "train.max_steps=3", "--accept-changes")
        assert code == 0, said
    assert len(losses(tmp_path / "run")) == 3
    assert "finetooth-full:full" in (tmp_path / "run" / "recipe.yaml").read_text()
