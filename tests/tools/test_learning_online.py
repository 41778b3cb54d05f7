"""What the page of learning by reward says: shares with intervals, ends of curves, and what was not measured."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest


def lines(shares: tuple[float, float], rewards: list[float]) -> list[dict[str, object]]:
    """What the tracker wrote of a run."""
    judged = [
        {"event": "evaluation", "name": "exact_match", "step": step, "metrics": {"regex_match": share}, "rows": 100}
        for step, share in zip((0, len(rewards)), shares, strict=True)
    ]
    steps = [{"event": "step", "step": i, "metrics": {"reward": reward}} for i, reward in enumerate(rewards, 1)]
    return [judged[0], *steps, judged[1]]


def test_the_first_and_the_last_evaluation_are_shares_with_wilsons_interval() -> None:
    from learning.online_running import measured
    from learning.online_tasks import TASKS

    found = measured(TASKS["format"], lines((0.0, 0.5), [0.1, 0.2, 0.3]))
    assert found["curves"]["reward"] == [0.1, 0.2, 0.3]
    # with z = 1.96: 0 of 100 is 0 to z^2 / (n + z^2), and half of 100 is symmetrical
    assert (found["before"]["low"], found["before"]["high"]) == (pytest.approx(0.0), pytest.approx(0.0370, abs=1e-4))
    assert 0.5 - found["after"]["low"] == pytest.approx(found["after"]["high"] - 0.5)


def test_a_run_that_was_not_judged_is_no_result() -> None:
    from learning.online_running import measured
    from learning.online_tasks import TASKS

    with pytest.raises(ValueError, match="gsm8k: the run was judged 0 times by 'number_match'"):
        measured(TASKS["gsm8k"], lines((0.0, 0.5), [0.1]))


def test_the_ends_of_a_curve_do_not_overlap() -> None:
    from learning.online_running import ends

    assert ends([0.0, 0.5, 1.0]) == (0.0, 1.0)
    assert ends([0.0] * 10 + [0.5] * 10 + [1.0] * 10) == (0.0, 1.0)


def test_a_page_says_whether_a_goal_is_met_and_what_was_not_measured() -> None:
    from learning.online_page import drawings, render
    from learning.online_running import measured
    from learning.online_tasks import TASKS

    task = TASKS["format"]
    results = []
    for seed, last in enumerate((0.97, 0.4)):
        run = {"seconds": 60.0, "cpu_seconds": 100.0, **measured(task, lines((0.0, last), [0.1] * 10 + [0.9] * 10))}
        results.append({"task": task.name, "seed": seed, "runs": {"grpo": run}})
    page = render({"format": results})
    assert "| grpo | 0 | 20 | 0.0 % (0.0 to 3.7; 100 rows) | 97.0 % (91.5 to 99.0; 100 rows) | 0.100, 0.900 |" in page
    assert "is met with 1 of 2 seeds" in page
    assert page.count("Not measured.") == len(TASKS) - 1
    assert list(drawings({"format": results})) == ["format"]


def judged(step: int, scores: list[float]) -> dict[str, object]:
    """An evaluation that shows every row."""
    samples = [{"id": str(i), "score": score} for i, score in enumerate(scores)]
    metrics = {"model": sum(scores) / len(scores), "unfinished": 0.25}
    return {"event": "evaluation", "step": step, "metrics": metrics, "samples": samples, "rows": len(scores)}


def test_rounds_are_means_of_scores_and_the_gain_is_row_by_row() -> None:
    """Rows that differ much and all gain the same: the gain has no width, the means have one."""
    from learning.online_page import render
    from learning.online_running import measured
    from learning.online_tasks import TASKS

    task = TASKS["self-rewarding"]
    first = [float(i % 7) for i in range(48)]
    steps = [{"event": "step", "step": i, "metrics": {"judge/mean": 2.0}} for i in range(1, 9)]
    told = [judged(0, first), *steps[:4], judged(4, first), *steps[4:], judged(8, [one + 0.5 for one in first])]
    found = measured(task, told)
    assert [one["step"] for one in found["rounds"]] == [0, 4, 8]
    assert found["rounds"][2]["mean"] == pytest.approx(sum(first) / 48 + 0.5, abs=1e-4)
    error = 1.96 * float(np.std(first)) / 48**0.5
    assert found["rounds"][0]["high"] - found["rounds"][0]["low"] == pytest.approx(2 * error, rel=0.15)
    assert (found["gain"]["mean"], found["gain"]["low"], found["gain"]["high"]) == (0.5, 0.5, 0.5)
    run = {"seconds": 60.0, "cpu_seconds": 100.0, **found}
    page = render({task.name: [{"task": task.name, "seed": 0, "runs": {"self_rewarding": run}}]})
    assert "| +0.50 (+0.50 to +0.50; 48 rows) | 25 %, 25 % |" in page


def test_a_run_that_was_ended_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import finetooth
    from learning.online_running import learn
    from learning.online_tasks import TASKS

    ended = SimpleNamespace(run=lambda: SimpleNamespace(status="interrupted", reason="SIGTERM after step 3"))
    monkeypatch.setattr(finetooth, "session", lambda *_: ended)
    with pytest.raises(RuntimeError, match="format: run grpo ended as interrupted: SIGTERM after step 3"):
        learn(TASKS["format"], 0, tmp_path, tmp_path / "runs", ())


def test_every_recipe_of_the_tasks_is_one(tmp_path: Path) -> None:
    """Names and options are known, without a model's weights or rows being read."""
    import finetooth
    from learning.online_tasks import TASKS

    data = tmp_path / "data"
    (data / "rl").mkdir(parents=True)
    row = json.dumps({"prompt": "What is 2 + 3?", "answer": "5"}) + "\n"
    (data / "rl/gsm8k_prompts_500.jsonl").write_text(row * 500, encoding="utf-8")
    (data / "preference").mkdir()
    pairs = [{"prompt": f"Say {i}.", "chosen": "please", "rejected": "now"} for i in range(400)]
    (data / "preference/polite_pref.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    for task in TASKS.values():
        recipes = task.runs(data, tmp_path / task.name, 0)
        assert set(task.measured) <= set(recipes)
        for recipe in recipes.values():
            if recipe["model"] == "smollm2-135m" and "teacher" not in recipe["method"]:
                finetooth.session({**recipe, "output": str(tmp_path / "run")}, data=False)


def test_the_page_in_the_repository_is_what_its_results_give() -> None:
    from learning.online_page import FOLDER, read, render
    from learning.online_tasks import ROOT

    written = (ROOT / "docs/benchmarks/rl.md").read_text(encoding="utf-8")
    assert written == render(read(FOLDER)), "run python tools/learn_online.py --page"


@pytest.mark.parametrize("told", [(), ("train.max_steps=4", "train.seed=1")])
def test_settings_of_the_command_line_reach_every_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: tuple[str, ...]
) -> None:
    """A session takes each override as an argument of its own, and none where there are none."""
    import finetooth
    from learning.online_running import learn
    from learning.online_tasks import TASKS

    real, seen = finetooth.session, []

    class Run:
        def __init__(self, recipe: dict[str, Any], *overrides: str) -> None:
            real(recipe, *overrides, data=False)  # refuses what it cannot read
            seen.append(overrides)
            self.output = Path(recipe["output"])

        def run(self) -> SimpleNamespace:
            self.output.mkdir(parents=True)
            text = "".join(json.dumps(line) + "\n" for line in lines((0.0, 1.0), [0.5]))
            (self.output / "metrics.jsonl").write_text(text, encoding="utf-8")
            return SimpleNamespace(status="done")

    monkeypatch.setattr(finetooth, "session", Run)
    found = learn(TASKS["format"], 0, tmp_path, tmp_path / "runs", told)
    assert seen == [told]
    assert found["runs"]["grpo"]["after"]["share"] == 1.0
    assert found["overrides"] == list(told)
