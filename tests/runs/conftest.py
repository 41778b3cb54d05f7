"""A small recipe."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetooth_core.cli import main

Recipe = dict[str, Any]


@pytest.fixture(scope="session")
def tiny_model(tiny_llama: Path) -> Path:
    """Two layers, 64 wide, random weights from a seed, the first of SmolLM2's tokens."""
    return tiny_llama


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


@pytest.fixture
def ft(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command; its exit code, and what it printed."""
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def written(recipe: Callable[..., Recipe], tmp_path: Path) -> Callable[..., Path]:
    """A recipe file over a few conversations."""

    def write(*rows: list[str], **sections: Any) -> Path:
        roles = ("user", "assistant")
        lines = [
            json.dumps({"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]})
            for texts in rows
        ]
        (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
        sections.setdefault("data", {"train": str(tmp_path / "rows.jsonl"), "renderer": "chatml"})
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(**sections)))
        return tmp_path / "recipe.yaml"

    return write
