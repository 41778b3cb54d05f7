"""A small recipe."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Recipe = dict[str, Any]


@pytest.fixture
def recipe(tiny_model: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """A recipe over 24 generated questions; keyword arguments replace whole sections."""

    def make(**sections: Any) -> Recipe:
        return {
            "model": str(tiny_model),
            "data": {"train": {"name": "tasks", "task": "family", "count": 24, "seed": 5}, "renderer": "chatml"},
            "method": "sft",
            "adapter": {"name": "lora", "rank": 4},
            "optimizer": {"name": "adamw", "learning_rate": 1e-2},
            "train": {"batch_size": 8, "precision": "fp32", "max_length": 256},
            "trackers": ["jsonl"],
            "output": str(tmp_path / "run"),
            **sections,
        }

    return make


@pytest.fixture
def losses() -> Callable[[Path], list[float]]:
    """Losses of a run folder, by step."""

    def read(folder: Path) -> list[float]:
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [line["loss"] for line in lines if line["event"] == "step"]

    return read


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real public data, if they are at hand."""
    folder = Path(os.environ.get("FT_SHARED", Path(__file__).parents[2].parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip("no shared data here (FT_SHARED)")
    return folder
