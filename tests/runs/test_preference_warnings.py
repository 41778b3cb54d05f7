"""A run that learns nothing from its pairs says so, once, while it trains."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import pytest

Make = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("method", ["dpo", "rm"])
def test_accuracy_that_stays_at_chance_is_told(recipe: Make, tmp_path: Path, method: str) -> None:
    rows = tmp_path / "pairs.jsonl"
    pairs = [
        {"prompt": f"{i}?", "chosen": "yes" if i % 2 else "no", "rejected": "no" if i % 2 else "yes"} for i in range(8)
    ]
    rows.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    optimizer = {"name": "adamw", "learning_rate": 1e-9}  # so low that nothing is learned
    train = {"batch_size": 2, "precision": "fp32", "max_length": 128, "max_steps": 52, "epochs": 13}
    data = {"train": str(rows), "renderer": "chatml"}
    session = finetooth.session(recipe(data=data, method=method, optimizer=optimizer, train=train))
    session.run()
    told = [note for note in session.context.notes if "which is chance" in note]
    assert len(told) == 1 and told[0].startswith("step 5") and "optimizer.learning_rate" in told[0]
