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

LETTERS = '''
"""A reward that answers of a random model differ in."""
from finetooth_hooks import NoOptions, Reward, hookimpl

@hookimpl
def ft_rewards():
    yield Reward(name="letters", build=f"{__name__}:build")

def build(options: NoOptions, context):
    return lambda prompts, completions, columns: [float(sum(c in "aeiou" for c in text)) for text in completions]
'''


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


@pytest.fixture
def metrics() -> Callable[[Path], list[dict[str, float]]]:
    """Metrics of a run folder, by step."""

    def read(folder: Path) -> list[dict[str, float]]:
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [line["metrics"] for line in lines if line["event"] == "step"]

    return read


@pytest.fixture
def online_recipe(recipe: Callable[..., Recipe], tmp_path: Path) -> Callable[..., Callable[..., Recipe]]:
    """Makes what makes recipes that learn from rewards for letters: of the method and the steps of a file's tests, and
    of a plugin in place of the one that has the reward alone. What it gives takes `train` and options of the method."""

    def of(method: Recipe, train: Recipe, plugin: str = LETTERS) -> Callable[..., Recipe]:
        (tmp_path / "letters.py").write_text(plugin, encoding="utf-8")
        rows = {"name": "tasks", "task": "family", "count": 8, "seed": 5}
        common = {"precision": "fp32", "max_length": 256}

        def make(**given: Any) -> Recipe:
            asked = given.pop("train", None) or {}
            return recipe(
                data={"train": rows, "format": "task", "renderer": "chatml"},
                method={"rewards": ["letters"], **method, **given},
                train={**common, **train, **asked},
                evaluate={"evaluators": []},
                plugins=[str(tmp_path / "letters.py")],
            )

        return make

    return of


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
