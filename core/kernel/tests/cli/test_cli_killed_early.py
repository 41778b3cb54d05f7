"""A run that is killed before its first step: it has begun as soon as its recipe is in the folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from finetooth_saving.run_folder import RECIPE, RUN, is_begun

POINTS = ("rows", "plan", "engine")
"""Where the toys can be killed: while rows are read, while the plan is made, while the weights are loaded."""


def killed(folder: Path, point: str, *overrides: str) -> None:
    """Run the recipe in a process of its own, which is killed at a point."""
    environment = {**os.environ, "TOY_KILLED_AT": point}
    command = [sys.executable, "-m", "finetooth", "run", "recipe.yaml", *overrides]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("point", POINTS)
def test_it_begins_anew_and_ends_as_if_nothing_had_happened(ft: Any, folder: Path, point: str) -> None:
    killed(folder, point)
    assert is_begun(folder / "runs/mine")
    refused = ft("run", "recipe.yaml")
    assert refused.code == 2 and "already holds a run that is unfinished (resume it: ft resume" in refused.err
    assert "or remove it: ft runs rm " in refused.err
    answer = ft("resume", "runs/mine")
    assert answer.code == 0, answer.err
    assert "the run saved no checkpoint; it starts over" in answer.err
    assert ft("run", "recipe.yaml", "--output", "runs/quiet").code == 0
    one, other = (json.loads((folder / f"runs/{name}/result.json").read_text()) for name in ("mine", "quiet"))
    for content in (one, other):
        for own in ("seconds", "run", "resumed", "checkpoints", "recipe_sha256", "plan_sha256", "plan_hash"):
            content.pop(own)
    assert one == other


def test_one_of_which_most_rows_are_left_out_asks_before_it_begins_anew(ft: Any, folder: Path) -> None:
    """The run that was killed had not come so far as to ask."""
    long = "".join(f"What is {i}?\tIt is {'very ' * 60}much.\n" for i in range(6))
    with (folder / "train.toy").open("a") as file:
        file.write(long)
    killed(folder, "rows", "train.max_length=128")
    for again in (("resume", "runs/mine"), ("run", "recipe.yaml", "train.max_length=128", "--resume")):
        answer = ft(*again)
        assert answer.code == 2 and "60 % of the rows are left out, 6 of 10" in answer.err, answer.err
        assert "with --accept-dropped or data.accept_dropped=true" in answer.err and "starts over" not in answer.err
    assert is_begun(folder / "runs/mine")  # nothing is lost by the question
    answer = ft("resume", "runs/mine", "data.accept_dropped=true")
    assert answer.code == 0 and "starts over" in answer.err, answer.err


def test_the_line_that_a_job_is_restarted_with_goes_on(ft: Any, folder: Path) -> None:
    killed(folder, "rows")
    begun = json.loads((folder / "runs/mine" / RUN).read_text())["id"]
    answer = ft("run", "recipe.yaml", "--resume")
    assert answer.code == 0 and "starts over" in answer.err
    assert json.loads((folder / "runs/mine/result.json").read_text())["run"] == begun


def test_killed_before_the_recipe_was_written_it_is_started_again(ft: Any, folder: Path) -> None:
    left = folder / "runs/mine"
    left.mkdir(parents=True)
    (left / ".lock").write_text("1")
    (left / RUN).write_text("{}")
    answer = ft("resume", "runs/mine")
    assert answer.code == 2
    assert "no run has begun there; it was stopped before it had written its recipe (start it again with ft run" in (
        answer.err
    )
    assert ft("run", "recipe.yaml").code == 0


def test_a_recipe_of_the_user_is_no_run_that_has_begun(ft: Any, folder: Path) -> None:
    answer = ft("resume", ".")
    assert answer.code == 2 and "is not a run folder" in answer.err
    answer = ft("run", "recipe.yaml", "output=.")
    assert answer.code == 2 and "exists and is not an empty folder" in answer.err
    assert (folder / RECIPE).read_text().startswith("\nmodel:")


@pytest.mark.parametrize("point", POINTS)
def test_a_run_that_cannot_begin_leaves_nothing(
    ft: Any, folder: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_FAILS_AT", point)
    answer = ft("run", "recipe.yaml")
    assert answer.code == 1 and f"the toy breaks at {point}" in answer.err
    assert not (folder / "runs").exists()
    (folder / "runs/mine").mkdir(parents=True)
    assert ft("run", "recipe.yaml").code == 1
    assert list((folder / "runs/mine").iterdir()) == []
