"""Recipes over files that are broken on purpose."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

SHARED = Path(os.environ.get("FT_SHARED", Path(__file__).parents[2].parent / "shared")) / "data"


@dataclass(frozen=True)
class Said:
    """What a command said.

    Attributes:
        code: its exit code.
        out: standard output.
        error: standard error.
    """

    code: int
    out: str
    error: str


@pytest.fixture(scope="session")
def bad() -> Path:
    """The folder of broken files."""
    if not (SHARED / "bad").is_dir():
        pytest.skip("no shared data here (FT_SHARED)")
    return SHARED / "bad"


@pytest.fixture
def recipe_of(tiny_model: Path) -> Callable[..., dict[str, Any]]:
    """A recipe of supervised fine-tuning over some data; keyword arguments are further settings of `data`, and `more`
    is whole sections."""

    def make(
        train: str | Path, *, max_length: int = 512, more: Mapping[str, Any] | None = None, **data: Any
    ) -> dict[str, Any]:
        return {
            "model": str(tiny_model),
            "data": {"train": str(train), "renderer": "chatml", **data},
            "train": {"max_length": max_length, "precision": "fp32"},
            **(more or {}),
        }

    return make


@pytest.fixture
def ft(
    recipe_of: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Said]:
    """Runs `ft data check` over a file as a user would; what it said, wide enough not to be wrapped."""
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.chdir(tmp_path)

    def run(train: str | Path, *, command: tuple[str, ...] = ("data", "check"), **given: Any) -> Said:
        from finetooth_core.cli import main

        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_of(train, **given)), encoding="utf-8")
        code = main([*command, "recipe.yaml"])
        return Said(code, *capsys.readouterr())

    return run
