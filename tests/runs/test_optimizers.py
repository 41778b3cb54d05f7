"""Optimizers that ask for more than a step, through whole runs and their plans."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
from finetooth_hooks import PlanError, RecipeError
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "torture"))

from killing import differences, left, rewound  # type: ignore[import-not-found]

FREE = {"name": "schedule_free_adamw", "learning_rate": 1e-3}
LENGTHS = {"batch_size": 8, "precision": "fp32", "max_length": 256}


def evaluations(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["metrics"]["loss"] for line in lines if line["event"] == "evaluation"]


def test_a_schedule_that_is_left_open_is_constant_for_averages(recipe: Callable[..., Any]) -> None:
    given = recipe(optimizer=FREE)
    given.pop("schedule", None)
    session = finetooth.session(given)
    factors = {session.job.request.updates.schedule.factor(step, 100) for step in (20, 50, 99)}
    assert factors == {1.0}
    falling = finetooth.session(recipe(optimizer=FREE, schedule="cosine"))
    assert falling.plan is not None
    assert any("averages weights instead" in note for note in falling.job.context.notes)


@pytest.mark.parametrize(
    ("optimizer", "more"),
    [
        (FREE, {}),
        ({"name": "badam", "switch_every": 1, "learning_rate": 1e-3}, {}),
        ({"name": "adalomo", "learning_rate": 1e-3}, {"max_grad_norm": 0}),
        ({"name": "adamw", "rounding": "stochastic", "offload": "disk"}, {"precision": "bf16"}),
    ],
    ids=["averages", "in turn", "inside backward", "without copies"],
)
def test_a_killed_run_goes_on_bit_for_bit(
    recipe: Callable[..., Any], optimizer: dict[str, Any], more: dict[str, Any]
) -> None:
    given = recipe(
        optimizer=optimizer,
        adapter={"name": "freeze", "layers": 2},
        checkpoint={"every": 1, "keep_last": 9},
        train={**LENGTHS, "max_steps": 4, "epochs": 4, **more},
    )
    assert finetooth.run(given).status == "done"
    folder = Path(given["output"])
    whole = rewound(folder, 2)
    assert finetooth.resume(folder).steps == 4
    assert differences(left(whole), left(folder)) == []


def test_what_is_measured_and_kept_is_the_average(recipe: Callable[..., Any], tmp_path: Path) -> None:
    """The last evaluation is that of the artifact, measured as another run's beginning; the weights that train are
    others, and are in the checkpoint."""
    data = {
        "train": {"name": "tasks", "task": "family", "count": 24, "seed": 5},
        "eval": {"name": "tasks", "task": "family", "count": 8, "seed": 6},
        "renderer": "chatml",
    }
    given = recipe(
        optimizer=FREE, data=data, adapter={"name": "freeze", "layers": 2}, checkpoint={"every": 1},
        train={**LENGTHS, "max_steps": 3},
    )  # fmt: skip
    assert finetooth.run(given).status == "done"
    folder = Path(given["output"])
    other = recipe(
        model=str(folder / "artifact"), data=data, output=str(tmp_path / "other"), evaluate={"before": True},
        train={**LENGTHS, "max_steps": 1},
    )  # fmt: skip
    assert finetooth.run(other).status == "done"
    assert evaluations(folder)[-1] == pytest.approx(evaluations(tmp_path / "other")[0], rel=1e-5)
    (weights,) = (folder / "artifact").glob("*.safetensors")
    (state,) = (folder / "checkpoints").glob("step-3/engine/trained.safetensors")
    artifact, trained = load_file(weights), load_file(state)
    assert any(not np.allclose(artifact[name], trained[name]) for name in trained)


def test_updates_inside_backward_want_no_clipping_and_no_gradients(recipe: Callable[..., Any]) -> None:
    asked = {"adapter": {"name": "freeze", "layers": 1}}
    with pytest.raises(PlanError, match=r"train.max_grad_norm=1: finetooth-lomo:adalomo updates inside backward"):
        _ = finetooth.session(recipe(optimizer="adalomo", **asked)).plan
    inside = finetooth.session(recipe(optimizer="adalomo", **asked), "train.max_grad_norm=0").plan.memory.parts
    after = finetooth.session(recipe(optimizer="adamw", **asked), "train.max_grad_norm=0").plan.memory.parts
    assert inside["gradients"] < after["gradients"] and inside["optimizer"] < after["optimizer"]


def test_a_state_on_disk_is_no_memory(recipe: Callable[..., Any]) -> None:
    found = {
        where: finetooth.session(recipe(optimizer={"name": "adamw", "offload": where})).plan.memory.parts["optimizer"]
        for where in ("none", "cpu", "disk")
    }
    assert found["disk"] == 0 < found["none"] == found["cpu"], "on a CPU host memory is the device's"


def test_weights_without_copies_take_four_bytes_less(recipe: Callable[..., Any]) -> None:
    found, kept = {}, {}
    for rounding in ("nearest", "stochastic", "corrected"):
        made = recipe(
            adapter={"name": "freeze", "layers": 1}, optimizer={"name": "adamw", "rounding": rounding},
            train={**LENGTHS, "precision": "bf16", "max_steps": 1},
        )  # fmt: skip
        session = finetooth.session(made)
        found[rounding] = session.plan.memory.parts["weights"]
        kept[rounding] = session.plan.memory.parts["optimizer"]
        trained = session.job.request.trains.parameters
    assert found["nearest"] - found["stochastic"] == found["nearest"] - found["corrected"] == 4 * trained
    assert kept["corrected"] - kept["stochastic"] == trained


def test_options_that_cannot_be_are_refused(recipe: Callable[..., Any]) -> None:
    with pytest.raises(RecipeError, match=r"optimizer.offload: disk cannot be: prodigy"):
        _ = finetooth.session(recipe(optimizer={"name": "prodigy", "offload": "disk"})).plan
    with pytest.raises(PlanError, match=r"train.precision=fp32: .*rounds weights into bf16"):
        _ = finetooth.session(
            recipe(optimizer={"name": "adamw", "rounding": "stochastic"}), "train.precision=fp32"
        ).plan
    for adapter in ({"name": "relora", "rank": 2}, {"name": "lisa", "layers": 1}):
        with pytest.raises(PlanError, match=r"averages of weights over steps, and the adapter changes the model"):
            _ = finetooth.session(recipe(optimizer="schedule_free_sgd", schedule="constant", adapter=adapter)).plan


def test_what_needs_cuda_is_refused_elsewhere(recipe: Callable[..., Any]) -> None:
    pytest.importorskip("finetooth_fewbits")
    with pytest.raises(PlanError, match=r"finetooth-fewbits:paged_adamw runs on cuda, and this run computes on cpu"):
        _ = finetooth.session(recipe(optimizer="paged_adamw")).plan
