"""A sweep over a real recipe, as a user calls it."""

from __future__ import annotations

import json

import pytest
import yaml
from finetooth_core.cli import main

pytest.importorskip("optuna", reason="optuna is not installed")


@pytest.mark.slow
def test_a_sweep_trains_each_trial_and_its_runs_are_runs(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = recipe(evaluate={"evaluators": ["loss"], "every": 1})
    del made["output"]
    made["data"]["eval"] = {"name": "tasks", "task": "family", "split": "eval", "count": 4, "seed": 5}
    made["sweep"] = {"trials": 2, "space": {"adapter.rank": [2, 4]}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(made))
    assert main(["sweep", "r.yaml", "train.max_steps=2"]) == 0
    assert "adapter.rank" in capsys.readouterr().out
    told = json.loads((tmp_path / "runs/r-sweep/sweep.json").read_text())
    for row in told["trials"]:
        result = json.loads((tmp_path / f"runs/r-sweep/trial-{row['trial']}/result.json").read_text())
        assert row["value"] == pytest.approx(result["best"]["eval/loss"]) and result["steps"] == 2
    assert main(["runs", "list", "--folder", "runs/r-sweep"]) == 0
    assert "trial-0  done" in capsys.readouterr().out
