"""What a plan refuses before anything is loaded, and what its hash stands for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
from finetooth_hooks import PlanError

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
    assert finetooth.session(recipe(), ["train.seed=9"]).plan.hash != first.hash
    assert finetooth.session(recipe(), ["train.micro_batch_tokens=128"]).plan.hash != first.hash


def test_a_recording_does_not_change_the_plan(recipe: Callable[..., Any]) -> None:
    plain = finetooth.session(recipe()).plan
    assert finetooth.session(recipe(profile={"start": 1, "steps": 1})).plan.hash == plain.hash


def test_accepting_little_memory_does_not_change_the_plan(recipe: Callable[..., Any]) -> None:
    plain = finetooth.session(recipe()).plan
    assert finetooth.session(recipe(), ["train.accept_memory=true"]).plan.hash == plain.hash


def test_a_budget_below_the_longest_row_names_the_row(recipe: Callable[..., Any]) -> None:
    longest = max(finetooth.session(recipe()).job.reports, key=lambda report: report.longest)
    with pytest.raises(PlanError, match=r"train\.micro_batch_tokens=20: row \S+ has \d+ tokens") as caught:
        _ = finetooth.session(recipe(), ["train.micro_batch_tokens=20"]).plan
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
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2_000_000))
    assert finetooth.session(recipe(model=str(tiny_smollm2))).plan.hash  # a small adapter fits
    with pytest.raises(PlanError, match=r"has 0\.00 GB free, and the run may write"):
        _ = finetooth.session(recipe(model=str(tiny_smollm2), adapter={"name": "freeze", "layers": 1})).plan
