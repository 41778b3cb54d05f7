"""Checkpoints elsewhere than in the run folder, and what the commands say of checkpoints."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "torture"))

from killing import differences, left  # type: ignore[import-not-found]

Ft = Callable[..., tuple[int, str, str]]
TRAIN = {"batch_size": 8, "precision": "fp32", "max_length": 256, "max_steps": 6, "epochs": 9}


@pytest.fixture
def six(recipe: Callable[..., Any], ft: Ft, tmp_path: Path) -> Path:
    """The folder of a run of six steps, every second one kept."""
    content = {**recipe(train=TRAIN, checkpoint={"every": 2, "keep_last": 0}), "output": str(tmp_path / "run")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    code, _, said = ft("run", tmp_path / "recipe.yaml")
    assert code == 0, said
    return tmp_path / "run"


def files(run: Path) -> dict[str, bytes]:
    """Everything in a run folder."""
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def test_a_run_goes_on_to_another_place_from_where_it_was(six: Path, ft: Ft, tmp_path: Path) -> None:
    run, kept = tmp_path / "moved", tmp_path / "kept"
    shutil.copytree(six, run, ignore=shutil.ignore_patterns("step-6", "artifact", "result.json"))
    code, _, said = ft("resume", run, f"checkpoint.stores=[{kept}]")
    assert code == 0, said
    assert "resuming after step 4" in said and "starts over" not in said
    assert [path.name for path in kept.iterdir()] == ["step-6"]
    shutil.copytree(kept / "step-6", run / "checkpoints" / "step-6")
    assert differences(left(six), left(run)) == []
    shutil.rmtree(run / "checkpoints")
    code, out, said = ft("checkpoint", "list", run)  # the run folder says where they are
    assert (code, said) == (0, "") and "step-6" in out
    assert "resuming after step 6" in ft("resume", run)[2]


def test_what_the_commands_say(six: Path, ft: Ft) -> None:
    aside = six / "checkpoints" / "quarantine" / "step-6"
    code, _, said = ft("resume", six, "--at", "4")
    assert code == 0 and f"step-6 is in {aside}" in said
    code, out, _ = ft("checkpoint", "list", six)
    assert code == 0 and "in quarantine: step-6, the run went on from step 4\n" in out
    names = [row["name"] for row in json.loads(ft("checkpoint", "list", six, "--json")[1])]
    assert names == ["step-6", "step-4", "step-2"]

    says = "no checkpoint has the metric eval/loss (there are: loss)"
    assert ft("checkpoint", "prune", six, "--keep-last", "1", "--keep-best", "1") == (2, "", f"error: {says}\n")
    code, out, _ = ft("checkpoint", "prune", six, "--keep-last", "1", "--keep-best", "1", "--metric", "loss")
    assert code == 0 and out.endswith("nothing was removed; add --yes\n")
    code, out, _ = ft("checkpoint", "prune", six, "--keep-last", "2", "--yes")
    assert (code, out) == (0, "step-2 removed\n")

    (six / "checkpoints/step-4/engine/trained.safetensors").write_bytes(b"torn")
    code, out, _ = ft("checkpoint", "verify", six)
    assert code == 2 and out.startswith("step-6: whole\nstep-4: ") and "has 4 bytes instead of" in out
    code, out, _ = ft("checkpoint", "prune", six, "--keep-last", "1", "--yes")
    assert code == 0 and out.startswith("step-4 stays: ") and out.endswith("nothing to remove\n")


def test_a_run_of_which_no_checkpoint_counts(recipe: Callable[..., Any], ft: Ft, tmp_path: Path) -> None:
    """A bound that nothing keeps: each checkpoint is in quarantine, the run is done, and stays as it is."""
    run = tmp_path / "run"
    content = recipe(train={**TRAIN, "max_steps": 4}, evaluate={"every": 2})
    content["data"]["eval"] = {"name": "tasks", "task": "family", "count": 6, "seed": 6}
    content["checkpoint"] = {"every": 2, "gates": ["finite", {"name": "bound", "metric": "eval/loss", "max": 0.001}]}
    content["output"] = str(run)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    code, _, said = ft("run", tmp_path / "recipe.yaml")
    assert code == 0 and said.count("does not count: gate bound: the metric eval/loss is") == 2, said
    code, out, _ = ft("checkpoint", "list", run)
    assert code == 0 and out.startswith("no complete checkpoint\nin quarantine: step-2, gate bound: ")
    assert ft("checkpoint", "list", run, "--json")[:2] == (0, "[]\n")
    says = f"{run} holds no checkpoint (2 in quarantine, and why: ft checkpoint list {run})"
    assert ft("checkpoint", "verify", run) == (2, "", f"error: {says}\n")

    trained = files(run)
    for again in (("resume", run), ("run", tmp_path / "recipe.yaml", "--resume")):
        code, out, said = ft(*again)
        assert code == 0 and "the run is done after 4 steps: nothing is left to do" in said and "artifact" in out
        assert files(run) == trained
    code, _, said = ft("resume", run, "train.max_steps=8")
    assert (
        code == 2 and "the run is done after 4 steps and kept no checkpoint to resume from (start another run" in said
    )
    assert files(run) == trained
    (run / "result.json").unlink()  # killed before its end
    code, _, said = ft("resume", run)
    assert code == 0 and "no checkpoint of the run counts, 2 in quarantine; it starts over" in said


def test_the_best_is_chosen_by_what_was_measured_of_its_own_weights(
    recipe: Callable[..., Any], ft: Ft, tmp_path: Path
) -> None:
    """Evaluations at 3, 6 and 7, the end; checkpoints at 2, 4, 6 and 7: the value of step 3 is none of step 4."""
    rows = {"name": "tasks", "task": "family", "count": 6, "seed": 6}
    content = recipe(train={**TRAIN, "max_steps": 7}, evaluate={"every": 3})
    content["data"]["eval"] = rows
    content["checkpoint"] = {"every": 2, "keep_last": 0, "select_on": "eval/loss"}
    content["output"] = str(tmp_path / "run")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    code, out, said = ft("run", tmp_path / "recipe.yaml")
    assert code == 0 and "nothing has measured" not in said, said
    listed = json.loads(ft("checkpoint", "list", tmp_path / "run", "--json")[1])
    measured = {row["step"]: row["metrics"]["eval/loss"] for row in listed if "eval/loss" in row["metrics"]}
    assert sorted(measured) == [6, 7] and [row["step"] for row in listed] == [7, 6, 4, 2]
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["artifact_step"] == min(measured, key=lambda step: measured[step])
    row = next(line for line in out.splitlines() if line.split()[:1] == ["loss"] and len(line.split()) > 5)
    assert row.split()[2] == f"{measured[result['artifact_step']]:.3f}"  # what is shown is of what is kept
    assert f"select_on: the artifact is of step {result['artifact_step']}" in said
    told = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {
        t["step"]: t["metrics"]["loss"] for t in told if t["event"] == "evaluation" and t["step"] in (6, 7)
    } == measured

    for misspelt in ({"select_on": "eval/los"}, {"keep_best": {"metric": "eval/los"}}):
        content |= {"output": str(tmp_path / "misspelt"), "checkpoint": {"every": 2, **misspelt}}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
        code, _, said = ft("check", tmp_path / "recipe.yaml")
        assert code == 2 and f"checkpoint.{next(iter(misspelt))}: no evaluator gives eval/los; there are: " in said
        assert "(did you mean eval/loss?)" in said
    content["checkpoint"] = {}
    content["schedule"] = {"name": "reduce_on_plateau", "metric": "eval/los", "mode": "min"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    code, _, said = ft("check", tmp_path / "recipe.yaml")
    assert code == 2 and "schedule.metric: no evaluator gives eval/los; there are: " in said
    code, _, said = ft("check", tmp_path / "recipe.yaml", "schedule.metric=eval/loss")
    assert code == 0, said
    del content["data"]["eval"], content["schedule"]
    content["checkpoint"] = {"every": 2, "select_on": "eval/loss"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    code, _, said = ft("check", tmp_path / "recipe.yaml")
    assert code == 2 and "checkpoint.select_on: nothing measures eval/loss: the recipe has no evaluator" in said
