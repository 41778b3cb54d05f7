"""Two steps on images, from a recipe: what trains is text."""

from __future__ import annotations

import json
from pathlib import Path

import finetooth
import pytest


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_two_steps_on_captions(vision_model: Path, captions: Path, tmp_path: Path, adapter: str) -> None:
    outcome = finetooth.run(
        {
            "model": str(vision_model),
            "data": {"train": str(captions), "cache": "off"},
            "adapter": adapter,
            "optimizer": {"name": "adamw", "learning_rate": 1e-3},
            "train": {"max_steps": 2, "batch_size": 18, "max_length": 1024, "shuffle": False},
            "output": str(tmp_path / "run"),
        }
    )
    assert outcome.status == "done" and outcome.steps == 2
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [step["loss"] for step in steps if "loss" in step]
    assert losses[-1] < losses[0]
