"""Curves below a notebook's cell while a run trains."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import finetooth
import pytest
from finetooth_hooks.reports import Evaluation, Outcome, StepReport
from finetooth_kit.tiny_runs import recipe_for, tiny_model_folder
from finetooth_notebook.curves import LiveCurves

__all__ = ["tiny_model_folder"]


def report(step: int, loss: float) -> StepReport:
    return StepReport(step, epoch=step / 4, loss=loss, tokens=10, targets=5, rows=2, learning_rate=1e-3, grad_norm=1.0)


HISTORY = (report(1, 2.0), report(2, 1.0))
OUTCOME = Outcome("done", 0, "", 2, {"loss": 1.0}, {}, None, "hash", 1.0, history=HISTORY)


@pytest.mark.parametrize("pause", [0.0, 1e9])
def test_curves_are_drawn_as_they_come_and_at_the_end(pause: float) -> None:
    drawn: list[str] = []
    curves = LiveCurves(drawn.append, pause=pause)
    run: Any = SimpleNamespace(step=0, total_steps=2)
    curves.start(run)
    for step in HISTORY:
        run.step = step.step
        curves.step(run, step)
    curves.evaluated(run, Evaluation("loss", 2, {"loss": 2.5}))
    curves.end(run, OUTCOME)
    assert len(drawn) == (3 if pause == 0 else 2)  # the first step is drawn at once, and the end always
    assert "step 1 of 2" in drawn[0] and "done after 2 steps" in drawn[-1]
    assert len(re.findall("<(?:polyline|path|circle)", drawn[-1])) >= 1
    curves.resume(run, HISTORY)
    curves.end(run, OUTCOME)
    assert len(drawn) == (4 if pause == 0 else 3)


@pytest.mark.parametrize("kernel", [True, False])
def test_a_run_from_python_draws_in_a_notebook_and_nowhere_else(
    kernel: bool, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    handle = SimpleNamespace(update=drawn.append)
    shown = SimpleNamespace(SVG=str, display=lambda content, display_id: drawn.append(content) or handle)
    shell = SimpleNamespace(has_trait=lambda name: kernel and name == "kernel")
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell, display=shown))
    recipe = recipe_for(tmp_path, tiny_model_folder, {})
    result = finetooth.run(recipe, "train.max_steps=2")
    assert result.status == "done"
    assert bool(drawn) is kernel
    assert not kernel or "done after 2 steps" in drawn[-1]
