"""The command line in a folder of its own, with a toy stack as a local plugin."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from finetooth_core.cli import main

RECIPE = """
model: {name: toy, loader: toy}
data: {train: train.toy, eval: train.toy}
method: toy_sft
adapter: toy
optimizer: toy
schedule: toy
backend: toy
hardware: toy
train: {epochs: 2, batch_size: 2}
evaluate: {evaluators: [toy_score]}
trackers: []
plugins: [./toy_plugin.py]
output: runs/mine
"""


@dataclass(frozen=True)
class Answer:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a recipe, its plugin and four rows."""
    shutil.copy(Path(__file__).with_name("toy_plugin.py"), tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "train.toy").write_text("".join(f"What is {i}?\tIt is {i}.\n" for i in range(4)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FT_PLUGINS", raising=False)
    return tmp_path


@pytest.fixture
def ft(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Runs `ft ARGUMENTS` in this process."""

    def call(*arguments: str) -> Answer:
        capsys.readouterr()
        code = main(list(arguments))
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return call
