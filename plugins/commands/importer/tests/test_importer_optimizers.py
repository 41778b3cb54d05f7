"""Optimizers that keep little: their options mean the same, and defaults are the tool's."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
from finetooth_importer.command import read_tool

FACTORY = {"model_name_or_path": "m", "stage": "sft", "finetuning_type": "full", "dataset": "a.jsonl"}
TRL = {"trainer": "sft", "model": "m", "dataset_name": "a.jsonl"}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"use_apollo": True}, {"name": "apollo", "rank": 16, "scale": sqrt(32), "update_every": 200}),
        ({"use_apollo": True, "apollo_scale": 4, "apollo_rank": 8}, {"name": "apollo", "rank": 8, "scale": 2.0}),
        ({"use_galore": True}, {"name": "galore", "rank": 16, "scale": 2.0, "update_every": 200}),
        ({"use_badam": True}, {"name": "badam", "order": "ascending", "switch_every": 50}),
        ({"use_badam": True, "badam_switch_mode": "random"}, {"name": "badam", "order": "random"}),
    ],
)
def test_llamafactorys_defaults_are_written(given: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Its finetuning_args; apollo-torch multiplies by the root of its scale, we by our own."""
    made = read_tool({**FACTORY, **given}, "llamafactory").recipe["optimizer"]
    assert {key: made[key] for key in wanted} == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"optim": "apollo_adamw"}, {"name": "apollo", "rank": 128, "scale": 1.0, "update_every": 200}),
        ({"optim": "galore_adamw"}, {"name": "galore", "rank": 128, "scale": 0.25, "update_every": 200}),
        ({"optim": "apollo_adamw", "optim_args": "rank=64, update_proj_gap=100, scale=9"},
         {"name": "apollo", "rank": 64, "scale": 3.0, "update_every": 100}),
        ({"optim": "galore_adamw_layerwise", "optim_args": {"scale": "0.1"}}, {"name": "galore", "scale": 0.1}),
    ],
)  # fmt: skip
def test_optim_args_are_options(given: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Defaults as transformers 5.23 has them in trainer_optimizer.py."""
    account = read_tool({**TRL, **given, "optim_target_modules": ["attn", "mlp"]}, "trl")
    made = account.recipe["optimizer"]
    assert {key: made[key] for key in wanted} == pytest.approx(wanted)
    assert not [line for line in account if line.outcome == "not taken"]


def test_what_of_optim_args_is_not_taken_is_listed() -> None:
    for given in (
        {"optim": "adamw_torch", "optim_args": "capturable=True"},
        {"optim": "galore_adamw", "optim_args": "rank=4,proj_type=reverse_std"},
        {"optim": "galore_adamw", "optim_target_modules": [".*q_proj"]},
    ):
        (line,) = [line for line in read_tool({**TRL, **given}, "trl") if line.outcome == "not taken"]
        assert line.key == list(given)[1]
