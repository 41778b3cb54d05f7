"""Rewards in a run that learns from them: several together, what they leave out, and faults, which name the row."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import pytest
from finetooth_hooks import FinetoothError
from finetooth_rollouts.rollouts_file import read_rollouts

FUNCTIONS = """
def letters(completions, **kwargs):
    return [float(sum(c in "aeiou" for c in one[0]["content"])) for one in completions]

def every_other(completions, completion_ids, **kwargs):
    return [None if i % 2 else float(len(ids)) for i, ids in enumerate(completion_ids)]

def steps(completions, trainer_state, log_metric, **kwargs):
    log_metric("step", trainer_state.global_step)
    return [float(trainer_state.global_step)] * len(completions)

def fails(completions, **kwargs):
    raise ZeroDivisionError("of mine")

def nothing(completions, **kwargs):
    return [None] * len(completions)
"""


@pytest.fixture
def run(recipe: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    """Two steps with these rewards; the run folder."""
    (tmp_path / "rewards.py").write_text(FUNCTIONS, encoding="utf-8")
    rows = [{"prompt": [{"role": "user", "content": f"{i} + 1?"}], "answer": str(i + 1)} for i in range(4)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def call(*rewards: Any, **more: Any) -> Path:
        given = recipe(
            data={"train": str(tmp_path / "sums.jsonl"), "format": "task", "renderer": "chatml"},
            method={"name": "grpo", "rewards": list(rewards), "num_generations": 4, "max_completion_length": 12},
            train={"batch_size": 2, "precision": "fp32", "max_length": 256, "max_steps": 2},
            evaluate={"evaluators": []},
            **more,
        )
        finetooth.run(given)
        return Path(given["output"])

    return call


def function(name: str, tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {"name": "python_function", "file": str(tmp_path / "rewards.py"), "function": name, "label": name, **more}


def test_several_with_weights_and_what_they_leave_out(run: Any, tmp_path: Path) -> None:
    """Functions written for TRL, rules, and a judge of tokens, summed with their weights."""
    overlong = {"name": "soft_overlong", "max_length": 12, "cache": 8, "weight": 0.5}
    folder = run(
        function("letters", tmp_path),
        function("every_other", tmp_path, weight=2),
        function("steps", tmp_path),
        {"name": "number_match", "weight": 3.0},
        overlong,
    )
    rollouts = dict(read_rollouts(folder))
    assert sorted(rollouts) == [1, 2]
    for step, of in rollouts.items():
        for i, one in enumerate(of):
            count = len(one.tokens)
            letters = float(sum(c in "aeiou" for c in one.text))
            expected = {
                "letters": letters,
                "every_other": None if i % 2 else float(count),
                "steps": step - 1.0,
                "number_match": one.rewards["number_match"],
                "soft_overlong": 0.0 if count <= 4 else (4 - count) / 8,
            }
            assert one.rewards == expected and expected["number_match"] in (0.0, 1.0)
            total = letters + (0 if i % 2 else 2 * count) + step - 1 + 3 * (expected["number_match"] or 0)
            assert one.reward == pytest.approx(total + 0.5 * (expected["soft_overlong"] or 0))
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    found = [line["metrics"] for line in lines if line["event"] == "step"]
    assert [one["rewards/every_other/left_out"] for one in found] == [4.0, 4.0]
    assert all("rewards/letters/left_out" not in one and "left_out" not in one for one in found)
    logged = [json.loads(line) for line in (folder / "rewards" / "steps.jsonl").read_text().splitlines()]
    assert [line["metrics"] for line in logged] == [{"step": [0.0]}, {"step": [1.0]}]


def test_a_fault_names_reward_and_row(run: Any, tmp_path: Path) -> None:
    with pytest.raises(FinetoothError) as caught:
        run(function("fails", tmp_path))
    text = str(caught.value)
    assert "rewards.py:fails: " in text and "sums.jsonl:" in text and "ZeroDivisionError: of mine" in text
    assert "\n" not in text and caught.value.exit_code == 2


@pytest.mark.slow
def test_a_reward_that_leaves_everything_out_ends_the_run(run: Any, tmp_path: Path) -> None:
    with pytest.raises(FinetoothError, match="nothing to learn from"):
        run(function("nothing", tmp_path))


@pytest.mark.slow
def test_a_reward_model_trained_here_judges(run: Any, recipe: Any, tmp_path: Path) -> None:
    """A policy learns from what an `rm` run says of its answers, in their conversations."""
    pair = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
    (tmp_path / "pairs.jsonl").write_text(f"{json.dumps(pair)}\n" * 8)
    made = recipe(
        method="rm",
        data={"train": str(tmp_path / "pairs.jsonl"), "renderer": "chatml"},
        train={"max_steps": 1, "batch_size": 4, "precision": "fp32"},
        output=str(tmp_path / "judge"),
    )
    finetooth.run(made)
    folder = run({"name": "model", "path": str(tmp_path / "judge")}, function("letters", tmp_path, weight=0.1))
    for of in dict(read_rollouts(folder)).values():
        said = [one for one in of if one.text.strip()]
        assert len({one.rewards["model"] for one in said}) > 1
        for one in of:
            assert (one.rewards["model"] is None) == (not one.text.strip())
