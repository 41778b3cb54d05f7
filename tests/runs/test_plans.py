"""What a plan refuses before anything is loaded, and what its hash stands for."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
from finetooth_hooks import PlanError, RecipeError

REFERENCE_LOSS = """
from finetooth_hooks import Loss, NoOptions, hookimpl

@hookimpl
def ft_losses():
    yield Loss(name="refd", build=f"{__name__}:build", needs=frozenset({"logprobs", "logprobs@reference"}))
    yield Loss(name="scored", build=f"{__name__}:build", needs=frozenset({"scores"}))

def build(options: NoOptions, context):
    return lambda outputs, data, state: None
"""


def test_the_hash_stands_for_what_decides_the_numbers_and_nothing_else(recipe: Callable[..., Any]) -> None:
    first = finetooth.session(recipe()).plan
    held = np.ones(200_000_000, dtype=np.uint8)  # the process grows: the memory estimate changes, the plan does not
    assert finetooth.session(recipe(trackers=[], output="elsewhere")).plan.hash == first.hash
    del held
    assert finetooth.session(recipe(), "train.seed=9").plan.hash != first.hash
    assert finetooth.session(recipe(), "train.micro_batch_tokens=128").plan.hash != first.hash


def test_a_recording_does_not_change_the_plan(recipe: Callable[..., Any]) -> None:
    plain = finetooth.session(recipe()).plan
    assert finetooth.session(recipe(profile={"start": 1, "steps": 1})).plan.hash == plain.hash


def test_accepting_little_memory_does_not_change_the_plan(recipe: Callable[..., Any]) -> None:
    plain = finetooth.session(recipe()).plan
    assert finetooth.session(recipe(), "train.accept_memory=true").plan.hash == plain.hash


def test_every_state_that_a_store_keeps_in_memory_is_counted(recipe: Callable[..., Any]) -> None:
    def snapshots(*stores: Any) -> int:
        made = recipe(checkpoint={"every": 1, "stores": [*stores, "disk"]})
        return finetooth.session(made).plan.memory.parts["snapshots"]

    one = snapshots()  # on its way to disk
    assert one > 0
    assert snapshots({"name": "device", "count": 3}) == 4 * one
    assert snapshots({"name": "host", "count": 5}) == 6 * one
    assert snapshots("device", {"name": "host", "count": 2}) == 4 * one


CALLS_TWICE = """
from finetooth_hooks import Method, NoOptions, hookimpl
from finetooth_hooks.bases import MethodBase
from finetooth_hooks.reports import DataReport, Prepared

@hookimpl
def ft_methods():
    yield Method(name="twice", build=f"{__name__}:Twice")

class Twice(MethodBase):
    capabilities = frozenset({"several_calls"})

    def __init__(self, options: NoOptions):
        pass

    def prepare(self):
        return Prepared(1, 4, DataReport("train", 4, 4))
"""


def test_gradients_of_earlier_calls_are_counted_where_a_step_may_have_some(
    recipe: Callable[..., Any], tmp_path: Path
) -> None:
    """Where the caller drives the engine, as a service's clients do, and for a method that says so."""
    name, own = "earlier_gradients", tmp_path / "twice.py"
    own.write_text(CALLS_TWICE)
    assert name not in finetooth.session(recipe()).plan.memory.parts
    driven = finetooth.session(recipe(), data=False)
    assert driven.plan.memory.parts[name] == 4 * driven.job.request.trains.parameters
    twice = finetooth.session(recipe(plugins=[str(own)], method="twice"))
    assert twice.plan.memory.parts[name] == 4 * twice.job.request.trains.parameters


def test_the_default_length_is_no_more_than_the_positions_of_the_model(
    recipe: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    """So that a short teacher, or any model in a command, can be opened; a length that is asked for is refused."""
    short = shutil.copytree(tiny_model, tmp_path / "short")
    config = json.loads((short / "config.json").read_text())
    rotary = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    changed = {**config, "max_position_embeddings": 64, "rope_parameters": rotary}
    (short / "config.json").write_text(json.dumps(changed))
    opened = finetooth.session({"model": str(short)}, data=False).plan
    assert opened.train.max_length == 128
    reasons = {decision.setting: decision.reason for decision in opened.decisions}
    assert reasons["train.max_length"] == f"{short} has no more positions"
    assert "rotary angles (dynamic) change with" in reasons["backend.decoder"]
    with pytest.raises(RecipeError, match=r"train\.max_length: 256 is more than the 128 positions of"):
        _ = finetooth.session(recipe(model=str(short))).plan


def test_a_budget_below_the_longest_row_names_the_row(recipe: Callable[..., Any]) -> None:
    longest = max(finetooth.session(recipe()).job.reports, key=lambda report: report.longest)
    with pytest.raises(PlanError, match=r"train\.micro_batch_tokens=20: row \S+ has \d+ tokens") as caught:
        _ = finetooth.session(recipe(), "train.micro_batch_tokens=20").plan
    assert longest.longest_id in str(caught.value) and f"at least {longest.longest}" in str(caught.value)


def test_a_loss_that_cannot_be_fed_is_refused_by_the_plan(recipe: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "losses.py").write_text(REFERENCE_LOSS)
    plugins = [str(tmp_path / "losses.py")]
    method = {"name": "sft", "loss": "refd"}
    assert finetooth.session(recipe(method=method), plugins=plugins).plan.hash
    with pytest.raises(PlanError, match=r"method\.loss: loss .*refd needs a reference model, and adapter full"):
        _ = finetooth.session(recipe(method=method, adapter="full"), plugins=plugins).plan
    with pytest.raises(PlanError, match=r"method\.loss: loss .*scored reads scores"):
        _ = finetooth.session(recipe(method={"name": "sft", "loss": "scored"}), plugins=plugins).plan


def test_a_whole_model_must_fit_on_the_disk(
    recipe: Callable[..., Any], tiny_smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(PlanError, match=r"has 1 MB free, and the run may write \d MB"):  # its tokenizer is larger
        _ = finetooth.session(recipe(model=str(tiny_smollm2))).plan
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=6_000_000))
    assert finetooth.session(recipe(model=str(tiny_smollm2))).plan.hash  # a small adapter fits
    with pytest.raises(PlanError, match=r"has 6 MB free, and the run may write 1\d MB"):
        _ = finetooth.session(recipe(model=str(tiny_smollm2), adapter={"name": "freeze", "layers": 1})).plan
    assert finetooth.session(recipe(model=str(tiny_smollm2), adapter="full"), data=False).plan.hash  # writes nothing


TOP = {"name": "freeze", "layers": 1}


@pytest.mark.parametrize(
    ("adapter", "optimizer", "kept"),
    [
        pytest.param(TOP, "adamw", 8.0, id="adamw"),
        pytest.param(TOP, "lion", 4.0, id="lion"),
        pytest.param({"name": "lisa", "layers": 1}, "adamw", 8.0, id="lisa"),  # layers that rest are in it
        pytest.param({"name": "relora", "rank": 8}, "adamw", 8.0, id="relora"),  # what was merged is in it
    ],
)
def test_room_is_asked_for_what_a_state_holds(
    recipe: Callable[..., Any], tiny_smollm2: Path, adapter: Any, optimizer: str, kept: float
) -> None:
    """As many bytes as the tensors of a checkpoint's state have, gradients not among them; of disk and of memory."""
    from finetooth_saving.room import state_size

    given = recipe(
        model=str(tiny_smollm2),
        adapter=adapter,
        optimizer={"name": optimizer, "learning_rate": 1e-3},
        train={"batch_size": 8, "precision": "fp32", "max_length": 256, "max_steps": 1},
        checkpoint={"every": 1},
    )
    session = finetooth.session(given)
    request = session.job.request
    assert session.run().status == "done"
    (state,) = (Path(given["output"]) / "checkpoints").glob("step-*")
    written = sum(file.stat().st_size for file in state.rglob("*.safetensors"))
    assert request.updates.state_bytes == kept
    beside = request.trains.adapter.kept_bytes(request.base.facts, request.base.model.parameters)
    assert written == pytest.approx(state_size(request.trains.parameters, kept, 0, beside), rel=0.05)
    assert session.plan.memory.parts["snapshots"] == pytest.approx(written, rel=0.05)


def test_checkpoints_in_memory_take_no_room_on_the_disk(
    recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from finetooth_core.planning import room

    given = recipe(adapter={"name": "freeze", "layers": 1}, checkpoint={"every": 1, "stores": ["host"]})
    request = finetooth.session(given).job.request
    info = request.base.model
    free = 4 * info.parameters + room.RECORDS + room.described(info.files)  # the artifact, which is the whole model
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
    assert finetooth.session(given).plan.hash
    with pytest.raises(PlanError, match="the run may write"):
        _ = finetooth.session({**given, "checkpoint": {"every": 1}}).plan


OPENS = '''
"""An evaluator that asks another model."""
from finetooth_hooks import Evaluation, Evaluator, EvaluatorBase, Options, hookimpl

class Judged(EvaluatorBase):
    def __init__(self, model, context):
        self.judge = context.open(model)
    def prepare(self):
        return None
    def evaluate(self, engine, step):
        return Evaluation("judged", step, {"judged": 0.0})

class JudgedOptions(Options):
    model: str

def build(options: JudgedOptions, context):
    return Judged(options.model, context)

@hookimpl
def ft_evaluators():
    yield Evaluator(name="judged", build=f"{__name__}:build")
'''


def test_a_model_that_a_part_opens_is_in_the_estimate(
    recipe: Callable[..., Any], tiny_smollm2: Path, tmp_path: Path
) -> None:
    """Counted in its file, in the precision of the run."""
    from safetensors import safe_open

    with safe_open(tiny_smollm2 / "model.safetensors", "np") as file:
        weights = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    (tmp_path / "judged.py").write_text(OPENS, encoding="utf-8")
    given = recipe(evaluate={"evaluators": [{"name": "judged", "model": str(tiny_smollm2)}]})
    plan = finetooth.session(given, plugins=[str(tmp_path / "judged.py")]).plan
    assert plan.memory.parts["roles"] == 4 * weights
    assert "roles" not in finetooth.session(recipe()).plan.memory.parts
