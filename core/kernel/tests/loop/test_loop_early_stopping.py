"""A run that ends because nothing gets better, and stops at the same step however often it is interrupted."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from finetooth_core.settings.recipe import load
from finetooth_hooks import Evaluation, RecipeError
from finetooth_saving.early_stopping import EarlyStopping

NAN = math.nan


def stops_at(values: list[float], **options: object) -> int | None:
    """The first of the evaluations at which a run ends; None if it never does."""
    stopping = EarlyStopping(**{"metric": "eval/loss", **options})  # type: ignore[arg-type]
    seen = [Evaluation("loss", step, {"loss": value}) for step, value in enumerate(values)]
    return next((n for n in range(len(seen)) if stopping.verdict(seen[: n + 1]) is not None), None)


def keras(values: list[float], patience: int, min_delta: float) -> int | None:
    """The rule of Keras' EarlyStopping (mode "min"), as its documentation says it, written down independently."""
    best, wait = math.inf, 0
    for index, value in enumerate(values):
        wait += 1
        if value < best - min_delta:
            best, wait = value, 0
        elif wait >= patience and index > 0:
            return index
    return None


@pytest.mark.parametrize("patience", [1, 2, 3])
@pytest.mark.parametrize("min_delta", [0.0, 0.15])
@pytest.mark.parametrize(
    "values",
    [
        [3.0, 2.0, 1.0, 0.5],
        [3.0, 2.0, 2.5, 2.4, 2.3, 1.0],
        [1.0, 1.0, 1.0, 1.0],
        [2.0, 1.9, 1.8, 1.7, 1.6],
        [2.0, NAN, 1.0, NAN, NAN, NAN],
    ],
)
def test_it_stops_where_the_known_rule_stops(values: list[float], patience: int, min_delta: float) -> None:
    assert stops_at(values, patience=patience, min_delta=min_delta) == keras(values, patience, min_delta)


def test_more_is_better_of_what_is_no_loss() -> None:
    values = [Evaluation("score", step, {"score": value}) for step, value in enumerate((0.1, 0.3, 0.2, 0.25))]
    stopping = EarlyStopping(metric="eval/score", patience=2)
    assert stopping.verdict(values[:3]) is None
    assert stopping.verdict(values) == (
        "train.early_stopping: 2 evaluations in a row without a better eval/score; 0.3 after step 1 is the best"
    )


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_resumed_run_stops_where_the_whole_one_stops(kit: SimpleNamespace, tmp_path: Path, cut: int) -> None:
    """The kit scores 0, 1, 2, 0: with one evaluation of patience the run ends after step 3."""
    how = {"every": 1, "save": 1, "stopping": EarlyStopping(metric="eval/score", patience=1)}
    whole = kit.make(tmp_path / "whole", kit.Method(), **how).run()
    assert (whole.status, whole.steps, whole.exit_code) == ("stopped", 3, 0)
    assert whole.reason.endswith("2 after step 2 is the best") and whole.artifact is not None
    assert (tmp_path / "whole/checkpoints/step-3").is_dir()
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for later in range(cut + 1, 4):
        shutil.rmtree(tmp_path / f"cut/checkpoints/step-{later}")
    again = kit.resumed(tmp_path / "cut", cut, **how).run()
    assert (again.status, again.steps, again.reason) == ("stopped", 3, whole.reason)
    assert kit.states(tmp_path / "cut") == kit.states(tmp_path / "whole")


def test_a_run_that_was_to_end_anyway_is_done(kit: SimpleNamespace, tmp_path: Path) -> None:
    stopping = EarlyStopping(metric="eval/score", patience=2)
    outcome = kit.make(tmp_path, kit.Method(), every=1, stopping=stopping).run()
    assert (outcome.status, outcome.steps) == ("done", 4)


@pytest.mark.parametrize(
    "given, problem",
    [
        ({"train": {"early_stopping": {}}}, "needs evaluations to watch .add evaluate.every, such as 50"),
        ({"train": {"early_stopping": {"metric": "loss"}}, "evaluate": {"every": 5}}, "loss is not one"),
        ({"train": {"early_stopping": {"patience": 0}}, "evaluate": {"every": 5}}, "train.early_stopping.patience"),
    ],
)
def test_what_could_never_stop_a_run_is_refused(given: dict[str, object], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        load({"model": "toy", **given})
