"""Runs whose optimizer DeepSpeed shards over two gloo processes, held against one process. `make scale-test`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_islands import run
from test_memory_of_ranks import check_foreseen
from test_two_ranks import CASES, RECIPE, check_alike, folder, ft, trained  # noqa: F401 - folder is a fixture

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed: make scale-test"),
]


def zero(**options: Any) -> dict[str, Any]:
    return {"devices": 2, "strategy": "zero3" if options["stage"] == 3 else {"name": "deepspeed", **options}}


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("sft", {"stage": 1}),
        ("full", {"stage": 2}),
        ("dpo", {"stage": 2, "offload": True}),
        ("sft", {"stage": 3}),
        ("full", {"stage": 3}),
        ("dpo", {"stage": 3}),
        ("spin", {"stage": 3}),
    ],
    ids=lambda value: value if isinstance(value, str) else f"stage-{value['stage']}",
)
def test_two_ranks_take_the_steps_of_one(folder: Path, case: str, options: dict[str, Any]) -> None:  # noqa: F811
    one = trained(folder, f"{case}-alone", 1, **CASES[case])
    two = run(folder, f"{case}-zero-{options['stage']}", zero(**options), **CASES[case])
    check_alike(one, two)
    held = ("weights", "gradients", "optimizer") if options["stage"] == 3 else ("optimizer",)
    assert check_foreseen(folder, two.name) == {"scale.ranks": "2", **{f"scale.{name}": "1/2" for name in held}}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("deepspeed", "1"),
        ("deepspeed", "ddp"),
        ("ddp", "deepspeed"),
        ("zero3", "1"),
        ("zero3", "fsdp"),
        ("deepspeed", "zero3"),
    ],
)
def test_a_run_goes_on_under_another_strategy(folder: Path, before: str, after: str) -> None:  # noqa: F811
    long = {"train": {**RECIPE["train"], "max_steps": 4, "epochs": 2}, "schedule": "constant"}
    whole = trained(folder, "whole-of-zero", 1, **long)
    short = {**long, "train": {**long["train"], "max_steps": 2}, "checkpoint": {"every": 1}}
    begun = run(folder, f"{before}-{after}", {"devices": 2, "strategy": before}, **short)
    scale = ["scale.devices=1"] if after == "1" else ["scale.devices=2", f"scale.strategy={after}"]
    done = ft(folder, "resume", str(begun), "train.max_steps=4", *scale)
    assert done.returncode == 0, done.stdout + done.stderr
    check_alike(whole, begun)
