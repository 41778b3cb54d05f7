"""`ft sweep` over a context that answers with a known function: what is tried, pruned, kept and gone on with."""

from __future__ import annotations

import gc
import json
import shlex
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from click.testing import CliRunner
from finetooth_hooks import Evaluation, Outcome, RecipeError, UserError
from finetooth_hooks.errors import EngineError, StopRun

pytest.importorskip("optuna", reason="optuna is not installed")

from finetooth_sweep import plugin
from finetooth_sweep.command import command

RECIPE = """
model: toy
sweep:
  trials: 6
  space:
    optimizer.learning_rate: {low: 0.001, high: 1.0, log: true}
    adapter.rank: [4, 8]
    train.batch_size: {low: 4, high: 12, step: 4}
"""


def loss_of(settings):
    return settings["adapter.rank"] + settings["optimizer.learning_rate"]


class Obj:
    """Runs whose loss is known: the less rank and learning rate, the better."""

    def __init__(self, at=None):
        self.ran, self.at = [], at or {}

    before = 1.0  # by how much more the loss is before the first step

    def load(self, recipe, overrides=()):
        if isinstance(recipe, Path):
            recipe = yaml.safe_load(recipe.read_text())
        else:
            assert "sweep" not in recipe
        given = dict(one.split("=", 1) for one in overrides)
        if "sweep.trials" in given:
            recipe["sweep"]["trials"] = int(given.pop("sweep.trials"))
        return {**recipe, "given": {**recipe.get("given", {}), **given}}

    def run(self, recipe):
        given = {name: json.loads(value) for name, value in recipe["given"].items()}
        self.ran.append((given, recipe["output"]))
        action = self.at.get(len(self.ran))
        if isinstance(action, Exception):
            raise action
        status, loss = "done", loss_of(given)
        try:
            for step in (0, 1, 2):
                for hook in (plugin.ft_evaluated,):
                    over = 1 - step / 2 if step else self.before
                    hook(None, Evaluation("loss", step, {"loss": loss + over}))
        except StopRun:
            status = "stopped"
        return Outcome(action or status, 0, "", 2, {"eval/loss": loss}, {}, None, "", 0.0)


def sweep(tmp_path, obj, *more, recipe=RECIPE):
    (tmp_path / "r.yaml").write_text(recipe)
    arguments = [str(tmp_path / "r.yaml"), "--output", str(tmp_path / "s"), *more]
    done = CliRunner().invoke(command, arguments, obj=obj, standalone_mode=False, catch_exceptions=False)
    return SimpleNamespace(code=done.return_value, output=done.output, folder=tmp_path / "s")


def test_it_tries_settings_of_the_space_and_shows_the_best_first(tmp_path):
    obj = Obj()
    done = sweep(tmp_path, obj, "train.seed=1")
    assert done.code == 0 and len(obj.ran) == 6 and plugin.watching == []
    for given, _ in obj.ran:
        assert 0.001 <= given["optimizer.learning_rate"] <= 1 and given["adapter.rank"] in (4, 8)
        assert given["train.batch_size"] in (4, 8, 12) and given["train.seed"] == 1
    assert len({output for _, output in obj.ran}) == 6
    told = json.loads((done.folder / "sweep.json").read_text())
    values = [row["value"] for row in told["trials"] if row["value"] is not None]
    assert values == sorted(values) and values[0] == pytest.approx(min(loss_of(given) for given, _ in obj.ran))
    lines = done.output.splitlines()
    assert lines[-10].split()[:2] == ["trial", "eval/loss"]
    best = told["trials"][0]
    assert f"the best is {done.folder}/trial-{best['trial']}, all of them drawn in {done.folder}/sweep.svg" in lines
    given = dict(word.split("=") for word in lines[-1].partition("ft run ")[2].split()[1:])
    assert {name: json.loads(value) for name, value in given.items()} == {"train.seed": 1, **best["settings"]}
    said = [line for line in lines if line.startswith("trial ") and " of 6): " in line]
    assert [line.partition(":")[0] for line in said] == [f"trial {n} ({n + 1} of 6)" for n in range(6)]
    assert (done.folder / "sweep.svg").read_text().startswith("<svg")


def test_settings_are_compared_by_what_they_trained(tmp_path):
    """Not by the model before it learnt, which is the best of all where training only makes it worse."""
    obj = Obj()
    obj.before = -100.0
    told = json.loads((sweep(tmp_path, obj, "sweep.trials=4").folder / "sweep.json").read_text())["trials"]
    assert [row["value"] for row in told] == pytest.approx(sorted(loss_of(given) for given, _ in obj.ran))
    assert len(told) == 4


@pytest.mark.slow
def test_it_goes_on_where_it_was_and_tries_again_what_was_interrupted(tmp_path):
    obj = Obj(at={3: "interrupted"})
    assert sweep(tmp_path, obj).code == 130
    cut = obj.ran[2][0]
    again = Obj()
    done = sweep(tmp_path, again)
    assert done.code == 0 and len(again.ran) == 4 and again.ran[0][0] == cut
    assert len(json.loads((done.folder / "sweep.json").read_text())["trials"]) == 6
    assert len({output for _, output in obj.ran + again.ran}) == 7


FEW = """
model: toy
sweep:
  trials: 9
  space:
    adapter.rank: {low: 4, high: 9, step: 4}
    optimizer.learning_rate: [0.5, 0.1]
    optimizer: [{name: adamw}, {name: lion}]
"""


@pytest.mark.slow
def test_settings_of_a_small_space_are_tried_once_each(tmp_path):
    """Though the search draws some of them again; and a setting is set before those that it holds."""
    obj = Obj()
    done = sweep(tmp_path, obj, recipe=FEW)
    tried = [tuple(json.dumps(value) for value in given.values()) for given, _ in obj.ran]
    wanted = {(json.dumps({"name": o}), r, lr) for o in ("adamw", "lion") for r in "48" for lr in ("0.5", "0.1")}
    assert len(tried) == 8 and set(tried) == wanted and next(iter(obj.ran[0][0])) == "optimizer"
    assert "the space holds 8 settings: each is tried once" in done.output
    last = shlex.split(done.output.splitlines()[-1].partition("ft run ")[2])[1:]
    assert json.loads(dict(word.split("=") for word in last)["optimizer"])["name"] in ("adamw", "lion")
    again = Obj()
    assert sweep(tmp_path, again, recipe=FEW).code == 0 and again.ran == []


@pytest.mark.parametrize(
    "change, name",
    [
        (("trials: 9", "trials: 9\n  mode: max"), "sweep.mode"),
        (("[0.5, 0.1]", "[0.5, 0.2]"), "sweep.space.optimizer.learning_rate"),
        (("model: toy", "model: tiny"), "model"),
        (("model: toy", "model: toy\ntrain: {seed: 1}"), "train"),
    ],
)
def test_trials_of_other_settings_are_not_compared_with_earlier_ones(tmp_path, change, name):
    assert sweep(tmp_path, Obj(), "--trials", "1", recipe=FEW).code == 0
    obj = Obj()
    with pytest.raises(UserError, match=rf"^{name} is not what it was in the earlier trials of "):
        sweep(tmp_path, obj, recipe=FEW.replace(*change))
    assert obj.ran == []


def test_one_sweep_at_a_time_works_in_a_folder_that_can_be_read(tmp_path):
    class Second(Obj):
        def run(self, recipe):
            with pytest.raises(UserError, match=r"/s: a sweep is under way there in process \d+ \(wait for it"):
                sweep(tmp_path, Obj())
            return super().run(recipe)

    assert sweep(tmp_path, Second(), "--trials", "1").code == 0
    (tmp_path / "s/study.log").write_text("garbage\n")
    with pytest.raises(UserError, match=r"/s/study\.log cannot be read: .* \(name another --output\)"):
        sweep(tmp_path, Obj())


def test_a_folder_of_something_else_is_left_as_it_is(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/recipe.yaml").write_text("model: toy")
    with pytest.raises(UserError, match=r"--output: .*/s exists and holds no sweep \(name another folder\)"):
        sweep(tmp_path, Obj())
    assert [file.name for file in (tmp_path / "s").iterdir()] == ["recipe.yaml"]


@pytest.mark.slow
def test_a_trial_worse_than_the_median_is_pruned(tmp_path):
    done = sweep(tmp_path, Obj(), "--trials", "12")
    told = json.loads((done.folder / "sweep.json").read_text())["trials"]
    pruned = [row for row in told if row["state"] == "pruned"]
    kept = sorted(loss_of(row["settings"]) for row in told if row["state"] == "complete")
    assert pruned and min(loss_of(row["settings"]) for row in pruned) > kept[0]


@pytest.mark.slow
def test_settings_that_do_not_work_do_not_end_the_sweep_and_bad_ones_do(tmp_path):
    done = sweep(tmp_path, Obj(at={2: EngineError("out of memory", action="less")}))
    failed = [row for row in json.loads((done.folder / "sweep.json").read_text())["trials"] if row["state"] == "fail"]
    assert done.code == 0 and "out of memory" in failed[0]["problem"]
    assert "trial 1 failed: out of memory" in done.output
    (tmp_path / "s/study.log").unlink()
    with pytest.raises(UserError, match=r"trial 0: x\.y: unknown setting"):
        sweep(tmp_path, Obj(at={1: RecipeError("x.y", "unknown setting")}))


def test_a_mistake_may_be_corrected_before_anything_was_trained(tmp_path):
    with pytest.raises(UserError, match=r"trial 0: x\.y: unknown setting"):
        sweep(tmp_path, Obj(at={1: RecipeError("x.y", "unknown setting")}), "x.y=1")
    assert sweep(tmp_path, Obj(), "--trials", "1").code == 0
    with pytest.raises(UserError, match=r"is not what it was in the earlier trials"):
        sweep(tmp_path, Obj(), "x.y=1")


@pytest.mark.parametrize(
    "metric, held_out, said",
    [
        ("eval/losss", {"loss": 1.0}, r"no evaluator and no step measures eval/losss \(did you mean eval/loss\?\)"),
        ("eval/accuracy", {"loss": 1.0}, r"no evaluator and no step measures eval/accuracy \(it measures eval/loss\)"),
        ("eval/loss", {}, r"no evaluator and no step measures eval/loss \(name held-out rows in data.eval\)"),
    ],
)
def test_a_metric_that_nothing_measures_ends_the_sweep_with_its_first_trial(tmp_path, metric, held_out, said):
    """And that one after its first step, where the evaluation before it shows what is measured."""
    steps = []

    class Measured(Obj):
        def run(self, recipe):
            self.ran.append(recipe["output"])
            status = "done"
            try:
                for step in (0, 1, 2):
                    if held_out:
                        plugin.ft_evaluated(None, Evaluation("loss", step, held_out))
                    steps.append(step)
                    plugin.ft_step(None, None)
            except StopRun:
                status = "stopped"
            last = {f"eval/{name}": value for name, value in held_out.items()}
            return Outcome(status, 0, "", 2, {"loss": 1.0, **last}, {}, None, "", 0.0)

    obj = Measured()
    with pytest.raises(UserError, match=said):
        sweep(tmp_path, obj, recipe=RECIPE.replace("trials: 6", f"trials: 6\n  metric: {metric}"))
    assert len(obj.ran) == 1 and (steps == [0] or not held_out) and plugin.stepping == []


@pytest.mark.slow
def test_the_weights_of_a_trial_are_gone_before_the_next_one(tmp_path):
    class Weights:
        def __init__(self):
            self.engine = self  # as modules and their hooks do

    alive = []

    class Heavy(Obj):
        def run(self, recipe):
            assert all(one() is None for one in alive)
            alive.append(weakref.ref(Weights()))
            return super().run(recipe)

    gc.disable()
    try:
        assert sweep(tmp_path, Heavy()).code == 0 and len(alive) == 6
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "recipe, problem",
    [
        ("model: toy", "sweep: the recipe has no such section"),
        ("sweep: {space: {a: [1]}}", "sweep.space.a: one value leaves no choice"),
        ("sweep: {space: {a: {log: [1, 2]}}}", r"sweep\.space\.a\.low: Field required \(write \{low: "),
        ("sweep: {space: {a: {low: 2, high: 1}}}", r"sweep\.space\.a.*low must be less than high"),
        ("sweep: {spaces: 1}", r"sweep\.spaces: unknown setting \(did you mean sweep\.space\?\)"),
        ("sweep: {space: {a: {lo: 2, high: 3}}}", r"sweep\.space\.a\.lo: .*\(did you mean sweep\.space\.a\.low\?\)"),
        ("sweep: {space: {a: [1, 2]}, lr: 3}", r"sweep\.lr: unknown setting \(known: metric, mode, "),
        ("sweep: {space: {a: [1, 2, 1]}}", r"sweep\.space\.a: 1 stands there twice"),
        ("sweep: {space: {output: [a, b]}}", r"sweep\.space\.output: a trial does not read it"),
        ("sweep: {space: {sweep.trials: [1, 2]}}", r"sweep\.space\.sweep\.trials: a trial does not read it"),
    ],
)
def test_what_is_wrong_with_the_recipe_is_said_before_anything_is_tried(tmp_path, recipe, problem):
    obj = Obj()
    with pytest.raises(UserError, match=problem):
        sweep(tmp_path, obj, recipe=recipe)
    assert obj.ran == []
