"""The examples of docs/hooks/examples, as a stranger would use them: a command, a strategy, a release gate."""

from __future__ import annotations

import asyncio
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_core.cli import main
from finetooth_hooks import ReleaseVersion
from finetooth_kit.tiny_runs import ROWS, metrics_of, recipe_for, tiny_model_folder
from safetensors.numpy import load_file

__all__ = ["tiny_model_folder"]

EXAMPLES = Path(__file__).parents[2] / "docs/hooks/examples"


@pytest.fixture(scope="module")
def run(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step with held-out rows."""
    folder = tmp_path_factory.mktemp("example")
    recipe = recipe_for(folder, tiny_model_folder, {"train": {"max_steps": 1}})
    recipe["data"] |= {"eval": recipe["data"]["train"], "classification": {"customer_data": False, "licence": "CC0"}}
    recipe["evaluate"] = {"before": False}
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    assert main(["run", str(folder / "recipe.yaml")]) == 0
    return folder / "run"


def test_hello_evaluates_a_run_and_prints_its_rows(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plugins", str(EXAMPLES / "hello.py"), "hello", str(run)]) == 0
    *rows, metrics = capsys.readouterr().out.splitlines()
    assert [re.match(r"[01]  '(.+?)'  ", row)[1] for row in rows] == [row["completion"] for row in ROWS]  # type: ignore[index]
    assert "exact_match" in metrics


def test_a_release_gate_holds_what_has_grown(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    gate = ["--plugins", str(EXAMPLES / "small_enough.py"), "registry"]
    for arguments in (
        ["init", "registry"],
        ["key", "ci.pem"],
        ["trust", "ci", "ci.pem.pub"],
        ["add", str(run), "--name", "bot", "--key", "ci.pem"],
    ):
        assert main(["registry", *arguments]) == 0, capsys.readouterr().err
    policy = {"data": {"customer_data": False}, "channels": {"production": {"gates": ["small_enough"]}}}
    (tmp_path / "registry/policy.yaml").write_text(json.dumps(policy))
    assert main([*gate, "promote", "bot@v0", "--to", "production"]) == 0
    assert "and no predecessor" in capsys.readouterr().out
    example = runpy.run_path(str(EXAMPLES / "small_enough.py"))
    judge = example["SmallEnough"](example["SmallEnoughOptions"](growth=0.1)).judge
    versions = [ReleaseVersion("bot", size, tmp_path / str(size), {}) for size in (100, 110, 111)]
    for version in versions:
        version.folder.mkdir()
        (version.folder / "weights").write_bytes(b"0" * version.number)
    assert [judge(version, versions[0]).passed for version in versions] == [True, True, False]


@pytest.mark.slow
def test_a_strategy_counts_what_ddp_sends(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Each step sums the gradients of what trains, in float32, and little besides."""
    scale = {"strategy": "counted", "devices": 2}
    recipe = recipe_for(tmp_path, tiny_model_folder, {"scale": scale, "plugins": [str(EXAMPLES / "counted.py")]})
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    command = [sys.executable, "-m", "finetooth", "run", str(tmp_path / "recipe.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sent = re.search(r"summed over 2 ranks: ([\d,]+) bytes a rank", done.stdout)
    assert sent is not None, done.stdout
    trained = sum(array.size for array in load_file(tmp_path / "run/artifact/adapter_model.safetensors").values())
    gradients = 4 * trained * len(metrics_of(tmp_path / "run"))
    assert gradients <= int(sent[1].replace(",", "")) <= 1.1 * gradients


def test_a_page_lists_recipes_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a&b.yaml").write_text("model: toy\n", encoding="utf-8")
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    service = SimpleNamespace(whole=lambda title, body: f"{title}: {body}")
    asyncio.run(runpy.run_path(str(EXAMPLES / "shelf.py"))["Shelf"]().app(service)({}, None, send))
    assert sent[1]["body"] == b"Recipes: <ul><li>a&amp;b.yaml: 1 lines</li></ul>"
