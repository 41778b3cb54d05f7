"""Schedules against transformers, torch and formulas.

transformers warms up with step / w, whose first update has no rate; ours has (step + 1) / w. So in the warm-up ours
equals theirs one step later, and after it both are equal.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from finetooth_hooks import RecipeError
from finetooth_kit import FakeContext
from finetooth_schedules import plateau, plugin, shapes
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import get_scheduler

TOTAL = 40


def make(name, **options):
    build = plateau.build if name == "reduce_on_plateau" else getattr(shapes, f"build_{name}")
    return build(get_type_hints(build)["options"](**options), FakeContext(Path()))


def theirs(name, steps, warmup, total=TOTAL, **specific):
    """Factors of transformers' schedule at steps 0 .. steps - 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_scheduler(name, optimizer, warmup, total, scheduler_specific_kwargs=specific or None)
    factors = []
    for _ in range(steps):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return factors


PEERS = [
    ("constant", {}, "constant_with_warmup", {}),
    ("linear", {}, "linear", {}),
    ("cosine", {}, "cosine", {}),
    ("cosine_with_restarts", {"cycles": 3}, "cosine_with_restarts", {"num_cycles": 3}),
    ("cosine_with_min", {"min_ratio": 0.2}, "cosine_with_min_lr", {"min_lr_rate": 0.2}),
    ("polynomial", {"power": 3.0, "end_ratio": 0.1}, "polynomial", {"power": 3.0, "lr_end": 0.1}),
    ("inverse_sqrt", {"timescale": 12}, "inverse_sqrt", {"timescale": 12}),
    ("wsd", {"decay_ratio": 0.25}, "warmup_stable_decay", {"num_decay_steps": 10, "decay_type": "linear"}),
    ("wsd", {"decay_ratio": 0.25, "decay": "cosine"},
     "warmup_stable_decay", {"num_decay_steps": 10, "decay_type": "cosine"}),
    ("wsd", {"decay_ratio": 0.25, "decay": "1-sqrt", "min_ratio": 0.1},
     "warmup_stable_decay", {"num_decay_steps": 10, "decay_type": "1-sqrt", "min_lr_ratio": 0.1}),
]  # fmt: skip


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize(("name", "options", "peer", "specific"), PEERS)
def test_equals_transformers_with_the_shifted_warmup(name, options, peer, specific, warmup):
    ours = make(name, warmup_steps=warmup, **options)
    expected = theirs(peer, TOTAL, warmup, **specific)
    for step in range(TOTAL):
        if step < warmup and "min_lr_ratio" in specific:
            continue  # there theirs rises from the floor, ours from zero
        peer_step = step + 1 if step < warmup else step
        assert ours.factor(step, TOTAL) == pytest.approx(expected[peer_step], abs=1e-9), step


def test_inverse_sqrt_without_timescale():
    ours = make("inverse_sqrt", warmup_steps=5)
    expected = theirs("inverse_sqrt", TOTAL, 5)
    assert [ours.factor(s, None) for s in range(5, TOTAL)] == pytest.approx(expected[5:])


@pytest.mark.parametrize(("total", "ratio"), [(40, 0.25), (100, 0.3), (10, 0.5)])
def test_one_cycle_equals_torch(total, ratio):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=total, pct_start=ratio, div_factor=10, final_div_factor=100
    )
    ours = make("one_cycle", warmup_ratio=ratio, start_divisor=10, end_divisor=100)
    for step in range(total):
        assert ours.factor(step, total) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9), step
        optimizer.step()
        if step < total - 1:
            schedule.step()


def test_first_update_of_the_warmup_moves():
    for name in ("constant", "linear", "cosine", "wsd", "inverse_sqrt", "polynomial", "reduce_on_plateau"):
        ours = make(name, warmup_steps=4)
        assert [ours.factor(step, TOTAL) for step in range(4)] == [0.25, 0.5, 0.75, 1.0], name


def test_default_warmups():
    assert make("cosine").factor(0, 100) == pytest.approx(1 / 3)
    assert make("one_cycle").factor(29, 100) == 1
    for name in ("constant", "linear", "wsd", "reduce_on_plateau"):
        assert make(name).factor(0, 100) == 1
    assert make("cosine", warmup_steps=10).factor(0, 100) == pytest.approx(0.1)
    assert make("cosine", warmup_ratio=None).factor(0, 100) == 1
    assert make("linear", warmup_ratio=0.1).factor(0, 100) == pytest.approx(0.1)


def test_warmup_options_survive_being_written_out():
    for options in ({}, {"warmup_steps": 5}, {"warmup_ratio": 0.2}):
        made = shapes.CosineOptions(**options)
        assert shapes.CosineOptions.model_validate(made.model_dump()) == made


def test_steps_and_ratio_together_are_refused():
    with pytest.raises(ValidationError, match="not both"):
        shapes.CosineOptions(warmup_steps=1, warmup_ratio=0.1)
    for bad in ({"warmup_ratio": 1.5}, {"warmup_steps": -1}, {"warmup_ratio": float("nan")}):
        with pytest.raises(ValidationError):
            shapes.LinearOptions(**bad)


def test_warmup_longer_than_the_run_is_refused():
    with pytest.raises(RecipeError, match=r"schedule\.warmup_steps: 50 .* 40"):
        make("cosine", warmup_steps=50).factor(0, 40)


def test_what_needs_a_total_says_so_as_its_entry_does():
    for entry in plugin.ft_schedules():
        ours = make(entry.name)
        if entry.needs_total:
            with pytest.raises(RecipeError, match=r"train\.max_steps"):
                ours.factor(3, None)
        else:
            assert ours.factor(3, None) > 0
            with pytest.raises(RecipeError, match=r"train\.max_steps"):
                make(entry.name, warmup_ratio=0.1).factor(3, None)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from([entry.name for entry in plugin.ft_schedules()]),
    total=st.integers(1, 300),
    ratio=st.floats(0, 1),
    beyond=st.integers(0, 5),
)
def test_factors_stay_between_zero_and_one(name, total, ratio, beyond):
    ours = make(name, warmup_ratio=ratio)
    factors = [ours.factor(step, total) for step in range(total + beyond)]
    assert all(math.isfinite(f) and 0 <= f <= 1 + 1e-12 for f in factors)
    assert factors[0] > 0
    assert ours.factor(0, total) == factors[0]
    warmup = math.ceil(ratio * total - 1e-9)
    if warmup:
        assert factors[warmup - 1] == pytest.approx(1)


def torch_plateau(losses, **options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **options)
    factors = []
    for loss in losses:
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step(loss)
    return factors


LOSSES = [3, 2.5, 2.6, 2.55, 2.51, 2.4, 2.4, 2.4, 2.4, float("nan"), 2.4, 2.0, 2.1, 2.1, 2.1, 2.1, 2.1, 2.1, 2.1, 1.9]


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize(("patience", "cooldown", "floor"), [(0, 0, 0.0), (2, 0, 0.1), (1, 3, 0.0)])
def test_plateau_equals_torch(mode, patience, cooldown, floor):
    values = LOSSES if mode == "min" else [5 - v for v in LOSSES]
    ours = make(
        "reduce_on_plateau", mode=mode, patience=patience, cooldown=cooldown, min_ratio=floor, drop=0.5, threshold=0.01
    )
    factors = []
    for step, value in enumerate(values):
        factors.append(ours.factor(step, None))
        ours.observe({"loss": value, "other": 1.0})
    expected = torch_plateau(
        values,
        mode=mode,
        factor=0.5,
        patience=patience,
        cooldown=cooldown,
        min_lr=floor,
        threshold=0.01,
        threshold_mode="rel",
    )
    assert factors == pytest.approx(expected)
    assert min(factors) < 1


def test_plateau_restores_exactly_and_looks_at_its_metric_only():
    import json

    straight = make("reduce_on_plateau", patience=0, cooldown=4, metric="eval/loss")
    for step in range(30):
        straight.factor(step, None)
        straight.observe({"loss": 1.0 / (step + 1)})
    assert straight.factor(30, None) == 1
    resumed = make("reduce_on_plateau", patience=0, cooldown=4, metric="eval/loss")
    for step, value in enumerate(LOSSES):
        if step:  # stop and go on in another process
            state = json.loads(json.dumps(resumed.state()))
            resumed = make("reduce_on_plateau", patience=0, cooldown=4, metric="eval/loss")
            resumed.restore(state)
        assert resumed.factor(step, None) == straight.factor(step, None)
        for schedule in (resumed, straight):
            schedule.observe({"eval/loss": value})


def test_plateau_does_not_observe_its_warmup():
    ours = make("reduce_on_plateau", patience=0, warmup_steps=5)
    for step in range(5):
        ours.factor(step, None)
        ours.observe({"loss": float(step)})
    assert ours.factor(5, None) == 1


def test_plateau_refuses_a_metric_that_steps_do_not_measure():
    schedule = make("reduce_on_plateau", metric="los", mode="min")
    with pytest.raises(RecipeError, match=r"schedule\.metric: steps measure no los; there are: loss .*eval/loss"):
        schedule.observe({"loss": 1.0})


def test_plateau_says_which_evaluation_it_waits_for(tmp_path):
    context = FakeContext(tmp_path)
    plateau.build(plateau.PlateauOptions(), context)
    assert context.awaited == {}
    schedule = plateau.build(plateau.PlateauOptions(metric="eval/loss"), context)
    assert context.awaited == {"schedule.metric": "eval/loss"}
    schedule.observe({"loss": 1.0})  # of a step: nothing to say
    schedule.observe({"eval/score": 1.0})  # of another evaluator
    assert schedule.best is None


def test_plateau_asks_which_way_a_score_is_better():
    """As lower, it would lower the rate for as long as answers get better."""
    with pytest.raises(ValidationError, match=r"mode is not set, and eval/exact_match is not a loss: set mode: max if"):
        make("reduce_on_plateau", metric="eval/exact_match")
    for metric in ("loss", "eval/loss", "eval/perplexity"):
        schedule = make("reduce_on_plateau", metric=metric, patience=0, threshold=0)
        for value in (3.0, 2.0, 1.0):
            schedule.observe({metric: value})
        assert (schedule.best, schedule.factor(0, None)) == (1.0, 1.0)
