"""Trackers with the run's name: a recipe that a catalog takes."""

from __future__ import annotations

from typing import Any

import pytest
from finetooth_importer.command import read_tool

AXOLOTL = {"base_model": "m", "datasets": [{"path": "a.jsonl"}], "sequence_len": 64}
TRL = {"trainer": "sft", "model": "m", "dataset_name": "a.jsonl"}


@pytest.mark.parametrize(
    ("tool", "given", "wanted"),
    [
        ("axolotl", {**AXOLOTL, "wandb_project": "p", "wandb_name": "mine"},
         {"name": "wandb", "project": "p", "run_name": "mine"}),
        ("axolotl", {**AXOLOTL, "wandb_project": "p", "wandb_run_id": "r1", "wandb_log_model": "end"},
         {"name": "wandb", "project": "p", "run_id": "r1", "log_model": True}),
        ("axolotl", {**AXOLOTL, "trackio_run_name": "mine"}, {"name": "trackio", "run_name": "mine"}),
        ("axolotl", {**AXOLOTL, "mlflow_run_name": "mine"}, {"name": "mlflow", "run_name": "mine"}),
        ("trl", {**TRL, "report_to": "wandb", "run_name": "mine"}, {"name": "wandb", "run_name": "mine"}),
        ("trl", {**TRL, "report_to": ["tensorboard", "trackio"], "run_name": "mine", "project": "p"},
         {"name": "trackio", "run_name": "mine", "project": "p"}),
        ("trl", {**TRL, "trainer": "grpo", "report_to": ["mlflow"], "log_completions": True, "logging_steps": 5},
         {"name": "mlflow", "samples_every": 5}),
        ("trl", {**TRL, "trainer": "grpo", "report_to": ["mlflow"], "log_completions": True,
                 "num_completions_to_print": 7}, {"name": "mlflow", "samples_every": 1, "samples": 7}),
        ("axolotl", {**AXOLOTL, "wandb_project": "p", "logging_steps": 2, "rl": "grpo",
                     "trl": {"log_completions": True, "num_completions_to_print": 4}},
         {"name": "wandb", "project": "p", "samples_every": 2, "samples": 4}),
    ],
)  # fmt: skip
def test_a_runs_name_goes_to_its_tracker(tool: str, given: dict[str, Any], wanted: dict[str, Any]) -> None:
    name = wanted["name"]
    pytest.importorskip(f"finetooth_{name}")
    from finetooth_kit import entries_of
    from finetooth_kit.builders import options_model

    account = read_tool(given, tool)
    assert wanted in account.recipe["trackers"]
    assert not [line for line in account if line.outcome == "not taken"]
    (entry,) = entries_of(f"finetooth_{name}.plugin")
    assert entry.name == name
    fields = options_model(entry).model_fields
    assert set(wanted) - {"name"} <= set(fields)


@pytest.mark.parametrize(("given", "outcome"), [("all", "not taken"), ("false", "no effect"), (None, "no effect")])
def test_histograms_are_not_taken_in_silence(given: str | None, outcome: str) -> None:
    account = read_tool({**AXOLOTL, "wandb_project": "p", "wandb_watch": given}, "axolotl")
    assert [line.outcome for line in account if line.key == "wandb_watch"] == [outcome]
