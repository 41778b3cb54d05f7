"""State and history come back from disk exactly as they were."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from finetooth_hooks import Evaluation, Sample, StepReport, UserError
from finetooth_saving import history, run_state
from finetooth_saving.history import History
from finetooth_saving.run_state import BadStep, Resumed, RunState, as_state, random_state, restore_random

STATE = RunState(
    run="ab", step=7, epoch=0.7, method={"step": 7}, plugins={"p": {"seen": [1, 2]}}, metrics={"loss": math.nan},
    best={"eval/x": math.inf}, evaluated_at=4, seconds=1.5, random=random_state(),
    bad_steps=(BadStep(3, "nan", ("a:1",), "skip", 2),), resumed=(Resumed(2, ("x: 1 -> 2",)),),
)  # fmt: skip


def test_a_state_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text(json.dumps(STATE.as_json(), allow_nan=False))
    found = run_state.read(path)
    assert math.isnan(found.metrics["loss"]) and found.best == {"eval/x": math.inf}
    assert found.as_json() == STATE.as_json()
    assert as_state(STATE.as_json()).bad_steps == STATE.bad_steps


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"format": 1}', '{"format": 2, "step": 1}', '{"format": 2, "x": 1}']
)
def test_what_is_no_state_is_refused_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"state\.json"):
        run_state.read(path)


def test_global_generators_go_on() -> None:
    before = random_state()
    drawn = random.random(), float(np.random.random())  # noqa: NPY002, RUF100 - the global ones are the subject
    random.seed(5)
    restore_random(json.loads(json.dumps(before)))
    assert (random.random(), float(np.random.random())) == drawn  # noqa: NPY002, RUF100


def some() -> History:
    found = History()
    for step in (1, 2, 3):
        found.add(StepReport(step, step / 3, math.nan if step == 2 else 1.0 / step, 8, 4, 2, 1e-3, math.inf,
                             metrics={"kl": -math.inf, "n": 1.0},
                             samples=(Sample("NaN", "p", "", "a", 0.5),) if step == 3 else ()))  # fmt: skip
    found.add(Evaluation("e", 3, {"x": 0.1}, {"guess": 0.5}, (Sample("NaN", "p", "NaN", "a", 0.5),), 3))
    return found


def test_a_history_comes_back_and_the_same_gives_the_same_bytes(tmp_path: Path) -> None:
    found = some()
    history.write(tmp_path / "a", found.lines())
    history.write(tmp_path / "b", found.lines())
    again = history.read(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert again.lines() == found.lines()
    assert math.isnan(again.reports[1].loss) and again.reports[3] == found.reports[3]  # type: ignore[union-attr]
    assert again.reports[0] == found.reports[0] and again.reports[2] == found.reports[2]


def test_a_history_is_cut_behind_a_step() -> None:
    found = some()
    found.cut(2)
    assert [report.step for report in found.reports] == [1, 2]
    assert len(found.lines()) == 2


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b garbage", b"not packed"])
def test_a_torn_history_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "history.jsonl.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"history\.jsonl\.gz does not hold the history"):
        history.read(tmp_path / "history.jsonl.gz")
