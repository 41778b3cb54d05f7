"""What rewards get of rollouts, and what is made of their scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetooth_hooks import DataError, Message, RecipeError
from finetooth_hooks.data.examples import Task
from finetooth_hooks.rollouts import Rollout
from finetooth_rollouts.drawn import Drawn
from finetooth_rollouts.judging import WeightedEnvironment, judged
from finetooth_rollouts.scoring import WeightedReward, check_columns, scored, weights_by_name

TASKS = {
    "rows:1": Task("2 + 2?", {"answer": "4"}),
    "rows:2": Task((Message("system", "Sum."), Message("user", "1 + 1?")), {"kind": "chat"}),
}


def rollout(row: str, text: str, outcome: Any = "stop") -> Rollout:
    tokens = tuple(range(len(text)))
    return Rollout(row, f"{row}@0", (1,), tokens, (0.0,) * len(text), (3,) * len(text), text, outcome)


def test_columns_of_rows_and_of_what_was_sampled() -> None:
    seen: list[Any] = []

    def reward(prompts: Any, completions: Any, columns: Any) -> list[float | None]:
        seen.append((prompts, completions, columns))
        return [1.0, None]

    found = scored([rollout("rows:1", "4"), rollout("rows:2", "no", "length")], TASKS, [WeightedReward("r", reward, 2)])
    assert [one.reward for one in found] == [2.0, None]
    talk = [{"role": "system", "content": "Sum."}, {"role": "user", "content": "1 + 1?"}]
    assert seen == [
        (
            ["2 + 2?", "1 + 1?"],
            ["4", "no"],
            {
                "answer": ["4", None],
                "kind": [None, "chat"],
                "row_id": ["rows:1", "rows:2"],
                "conversation": [None, talk],
                "completion_ids": [[0], [0, 1]],
                "outcome": ["stop", "length"],
                "version": [3, 3],
            },
        )
    ]


def test_a_row_may_not_take_a_name_of_them() -> None:
    tasks = {"rows:1": Task("?", {"outcome": "won"})}
    with pytest.raises(DataError, match="rows:1: the row has a column 'outcome'"):
        scored([rollout("rows:1", "x")], tasks, [])


def test_a_column_that_no_row_has_is_refused_before_anything_is_sampled() -> None:
    class Right:
        needed_columns = ("completion_ids", "solution")

    rewards = [WeightedReward("plain", lambda prompts, answers, columns: [1.0], 1.0)]
    check_columns(rewards, ())
    rewards.append(WeightedReward("right", Right(), 1.0))  # type: ignore[arg-type]
    check_columns(rewards, {"solution", "kind"})
    with pytest.raises(DataError, match=r"reward right: it needs a column 'solution', .*; the rows have: answer, kind"):
        check_columns(rewards, ("kind", "answer"))


def test_labels_name_rewards() -> None:
    picks: list[Any] = [{"name": "function", "label": "polite"}, "function", {"name": "a:function", "weight": 0.5}]
    assert weights_by_name(picks) == {"polite": 1.0, "function": 1.0, "function#2": 0.5}
    with pytest.raises(RecipeError, match=r"method.rewards.0.label: 'a b' cannot be a label"):
        weights_by_name([{"name": "function", "label": "a b"}])


def test_a_prompt_that_was_text_is_no_conversation() -> None:
    talks: list[Any] = []
    tasks = {"rows:1": Task((Message("user", "?"),), {}, from_text=True), "rows:2": Task((Message("user", "?"),))}

    def reward(prompts: Any, completions: Any, columns: Any) -> list[float | None]:
        talks.extend(columns["conversation"])
        return [1.0, 1.0]

    scored([rollout("rows:1", "x"), rollout("rows:2", "y")], tasks, [WeightedReward("r", reward, 1)])
    assert talks == [None, [{"role": "user", "content": "?"}]]


def test_what_is_left_out_is_counted() -> None:
    drawn = Drawn()
    drawn.left_out.update({"polite": 3, "": 1})
    assert drawn.metrics() == {
        "skipped_zero_adv_batches": 0.0,
        "num_rollouts": float(drawn.sampled),
        "rewards/polite/left_out": 3.0,
        "left_out": 1.0,
    }
    assert set(Drawn().metrics()) == {"skipped_zero_adv_batches", "num_rollouts"}


def test_a_required_reward_is_a_filter() -> None:
    """What it leaves out has no reward, whatever others say; beside an environment too."""
    right = WeightedReward("right", lambda prompts, answers, columns: [1.0, 1.0], 2.0)
    clean = WeightedReward("clean", lambda prompts, answers, columns: [None, 0.5], 0.0, required=True)
    answers = [rollout("rows:1", "4"), rollout("rows:2", "no")]
    found = scored(answers, TASKS, iter([right, clean]))
    assert [one.reward for one in found] == [None, 2.0]
    assert [one.rewards for one in found] == [{"right": 1.0, "clean": None}, {"right": 1.0, "clean": 0.5}]
    optional = scored(answers, TASKS, [right, replace(clean, required=False)])
    assert [one.reward for one in optional] == [2.0, 2.0]
    played = [(replace(one, reward=0.25),) for one in answers]
    world: Any = WeightedEnvironment("world", None, 4.0)  # type: ignore[arg-type]
    assert [one.reward for one in judged(played, TASKS, [right, clean], world, "leave_out")] == [None, 3.0]
