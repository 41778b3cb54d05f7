"""A run that a plugin stops goes on with a lower floor, and ends as if nobody had stopped it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Ft = Callable[..., tuple[int, str, str]]

FLOOR = """
from finetooth_hooks import Options, StopRun, hookimpl


class FloorOptions(Options):
    at: int
    lowest: float


plugin_options = FloorOptions


@hookimpl
def ft_evaluated(run, evaluation):
    if evaluation.step == run.options.at and -evaluation.metrics["loss"] < run.options.lowest:
        raise StopRun("below the floor", exit_code=3)


@hookimpl
def ft_run_end(run, outcome):
    if outcome.status == "done" and run.options.at < 0 < run.options.lowest:
        raise StopRun("below the floor", exit_code=3)
"""


def ended(run: Path) -> tuple[str, list[Any], dict[str, Any]]:
    """The weights, what was reported, and the metrics at the end."""
    weights = hashlib.sha256((run / "artifact/adapter_model.safetensors").read_bytes()).hexdigest()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    told = [
        (line["event"], line["step"], line.get("loss", line.get("metrics")))
        for line in lines
        if line["event"] in ("step", "evaluation")
    ]
    result = json.loads((run / "result.json").read_text())
    assert (result["status"], result["exit_code"], result["steps"]) == ("done", 0, 3)
    return weights, told, {name: result["metrics"][name] for name in ("loss", "eval/loss")}


@pytest.mark.parametrize("at", [1, 3, -1], ids=["on the way", "at the last step", "at the very end"])
def test_it_goes_on_with_a_lower_floor(recipe: Callable[..., Any], ft: Ft, tmp_path: Path, at: int) -> None:
    (tmp_path / "floor.py").write_text(FLOOR)
    content = recipe(evaluate={"every": 1, "evaluators": ["loss"]})
    content["data"]["eval"] = {"name": "tasks", "task": "family", "count": 4, "seed": 6}
    content["plugins"] = [{"use": "./floor.py", "options": {"at": at, "lowest": 1.0}}]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    code, _, said = ft("run", tmp_path / "recipe.yaml", "plugins.0.options.lowest=-99", f"output={tmp_path / 'whole'}")
    assert code == 0, said
    code, out, said = ft("run", tmp_path / "recipe.yaml")
    assert code == 3 and "below the floor" in out, said
    code, _, said = ft("resume", tmp_path / "run", "plugins.0.options.lowest=-99")
    assert code == 0 and f"resuming after step {abs(at) if at > 0 else 3}" in said, said
    assert ended(tmp_path / "run") == ended(tmp_path / "whole")


@pytest.mark.parametrize("fewer", [["train.max_steps=1"], ["train.epochs=0.4"]])
def test_fewer_steps_than_were_done_are_refused_and_nothing_is_written(
    recipe: Callable[..., Any], ft: Ft, tmp_path: Path, fewer: list[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(checkpoint={"every": 1})))
    assert ft("run", tmp_path / "recipe.yaml")[0] == 0

    def content() -> dict[str, bytes]:
        files = (path for path in (tmp_path / "run").rglob("*") if path.is_file())
        return {str(path): path.read_bytes() for path in files}

    before = content()
    code, _, said = ft("resume", tmp_path / "run", *fewer)
    assert code == 2 and "steps in all" in said and "--at STEP" in said, said
    assert content() == before
