"""A run that overfits, stopped before it does, from its recipe on."""

from __future__ import annotations

import json
from pathlib import Path

import finetooth
import pytest
from finetooth_hooks import RecipeError


def test_a_run_that_overfits_ends_early_and_keeps_its_best(recipe):
    """A learning rate at which held-out rows get worse from the first step on."""
    made = recipe(
        evaluate={"evaluators": ["loss"], "every": 1},
        optimizer={"name": "adamw", "learning_rate": 1.0},
        checkpoint={"every": 1, "select_on": "eval/loss"},
        train={"batch_size": 4, "precision": "fp32", "max_length": 256, "early_stopping": {"patience": 2}},
    )
    made["data"]["eval"] = {"name": "tasks", "task": "family", "split": "eval", "count": 4, "seed": 5}
    outcome = finetooth.run(made)
    assert (outcome.status, outcome.exit_code) == ("stopped", 0) and outcome.steps < 6
    found = [evaluation.metrics["loss"] for evaluation in outcome.evaluations]
    best = found.index(min(found))
    assert found.index(found[-1]) - best == 2
    assert outcome.artifact_step == max(1, 1 + found[1:].index(min(found[1:])))
    told = json.loads((Path(made["output"]) / "result.json").read_text())
    assert told["reason"].startswith("train.early_stopping: 2 evaluations in a row without a better eval/loss")


def test_a_metric_that_nobody_measures_is_refused_before_anything_trains(recipe):
    made = recipe(evaluate={"every": 1}, train={"early_stopping": {"metric": "eval/score"}, "precision": "fp32"})
    with pytest.raises(RecipeError, match=r"train\.early_stopping\.metric: nothing measures eval/score"):
        finetooth.run(made)
    made["data"]["eval"] = {"name": "tasks", "task": "family", "split": "eval", "count": 4, "seed": 5}
    made["evaluate"]["evaluators"] = ["loss"]
    with pytest.raises(RecipeError, match=r"train\.early_stopping\.metric: .*eval/loss"):
        finetooth.run(made)


def test_a_run_that_may_end_early_is_opened_by_whatever_uses_it(recipe, ft, tmp_path):
    """Its settings for evaluations and checkpoints are of its training: opening it judges none of them again."""
    made = recipe(
        evaluate={"evaluators": ["loss"], "every": 1},
        checkpoint={"every": 1, "select_on": "eval/loss"},
        train={"batch_size": 8, "max_steps": 2, "precision": "fp32", "max_length": 256, "early_stopping": {}},
        export=["safetensors"],
    )
    made["data"]["eval"] = {"name": "tasks", "task": "family", "split": "eval", "count": 4, "seed": 5}
    assert finetooth.run(made).exit_code == 0
    run = Path(made["output"])
    assert (run / "exports" / "safetensors" / "model.safetensors").is_file()
    for words in (
        ("chat", run, "--prompt", "Who?", "--max-tokens", "2"),
        ("export", run, "--to", "vllm-lora", "--output", tmp_path / "lora"),
        ("merge", run, "--to", "int8", "--bound", "9", "--output", tmp_path / "merged"),
        ("push", run, "--to", "hf:me/mine", "--dry-run"),
        ("eval", run),
    ):
        code, _, err = ft(*words)
        assert code == 0, (words, err)
    assert finetooth.run({**recipe(model=str(run)), "output": str(tmp_path / "next")}).exit_code == 0
