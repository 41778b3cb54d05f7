"""Ranks that divide a model take the steps of one process in bf16, as far as rounding leaves them alike."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
from test_two_ranks import CASES, RECIPE, folder, ft, steps  # noqa: F401 - folder is a fixture

ROUNDED = 2.0**-8
"""Between a number and the next one in bf16, as a share of it."""
STRATEGIES: dict[str, Any] = {
    "fsdp, replicas: 2": {"name": "fsdp", "replicas": 2},
    "pipeline, stages: 2, shard: true": {"name": "pipeline", "stages": 2, "shard": True},
}


def masters(folder: Path, precision: str, strategy: str = "") -> tuple[Path, dict[str, Any]]:  # noqa: F811
    """A run of three steps, and the fp32 weights behind them. With `sgd` a step is as far from another one as their
    gradients are: `adamw` would make steps of one length also of numbers that rounding has made up."""
    run = folder / "".join(letter for letter in f"{precision}{strategy}" if letter.isalnum())
    train = {**RECIPE["train"], "precision": precision, "epochs": 2, "max_steps": 3}
    recipe = {
        **RECIPE, **CASES["full"], "train": train, "schedule": "constant", "checkpoint": {"every": 3},
        "optimizer": {"name": "sgd", "learning_rate": 0.05}, "output": run.name,
        "scale": {"devices": 4, "strategy": STRATEGIES[strategy]} if strategy else {},
    }  # fmt: skip
    (folder / f"{run.name}.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    if not (run / "artifact").exists():
        done = ft(folder, "run", f"{run.name}.yaml")
        assert done.returncode == 0, done.stdout + done.stderr
    return run, load_file(run / "checkpoints/step-3/engine/trained.safetensors")


def error(weights: dict[str, Any], truth: dict[str, Any], began: dict[str, Any]) -> float:
    """How far weights are from those in fp32, as a share of the way that these have gone."""
    off = sum(float((weights[name].double() - of.double()).square().sum()) for name, of in truth.items())
    way = sum(float((began[name].double() - of.double()).square().sum()) for name, of in truth.items())
    return float((off / way) ** 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ranks_take_three_steps_of_one_process_in_bf16(folder: Path, strategy: str) -> None:  # noqa: F811
    """Judged by the same steps in fp32. Both round a gradient to bf16 once a pass, and sum passes in fp32; ranks make
    other passes of the same rows, so their roundings differ, and are no larger: half as much again is allowed. Of a
    loss, a mean over tokens whose own errors are about one rounding, the error is at most one."""
    began = load_file(folder / "model/model.safetensors")
    _, truth = masters(folder, "fp32")
    one, of_one = masters(folder, "bf16")
    ranks, of_ranks = masters(folder, "bf16", strategy)
    assert truth.keys() == of_one.keys() == of_ranks.keys()
    errors = [error(weights, truth, began) for weights in (of_one, of_ranks)]
    print(f"\n{strategy}: one process is {errors[0]:.2e} of its way from fp32, ranks {errors[1]:.2e}")
    assert ROUNDED / 100 < errors[1] <= 1.5 * errors[0] < 0.05
    for a, b in zip(steps(one), steps(ranks), strict=True):
        print(f"losses {a['loss']:.6f} and {b['loss']:.6f}, gradients {a['grad_norm']:.5f} and {b['grad_norm']:.5f}")
        assert b["loss"] == pytest.approx(a["loss"], rel=ROUNDED)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=4 * ROUNDED)
        assert (a["tokens"], a["targets"]) == (b["tokens"], b["targets"])
