"""The tasks source: splits apart, questions once, the same rows everywhere, answers a second computation confirms."""

from __future__ import annotations

import hashlib
import json
import random
import re
from datetime import date, timedelta
from itertools import islice, pairwise

import pytest
from finetooth_hooks.errors import DataError
from finetooth_tasks.source import TASKS, TasksOptions, TasksSource
from pydantic import ValidationError

# SHA-256 of the first 200 rows of each task's train split with seed 0, as JSON; a change here changes every recipe that
# names the task
PINNED = {
    "arithmetic": "b529143672c9d4cc",
    "family": "9c66f97be2eb0958",
    "sorting": "8e47dbbfabf31764",
    "weekdays": "7e73509ad7b5c9be",
}


def rows(task: str, count: int = 200, seed: int = 0, split: str = "train") -> list[tuple[str, dict[str, str]]]:
    options = TasksOptions.model_validate({"task": task, "count": count, "seed": seed, "split": split})
    return [(row.id, dict(row.values)) for row in TasksSource(options).rows()]


@pytest.mark.parametrize("task", sorted(TASKS))
class TestEveryTask:
    def test_the_same_seed_gives_the_pinned_rows(self, task: str) -> None:
        random.seed(1)  # global state must not matter
        text = json.dumps(rows(task), sort_keys=True)
        assert hashlib.sha256(text.encode()).hexdigest()[:16] == PINNED[task]

    def test_it_leaves_global_randomness_alone(self, task: str) -> None:
        before = random.getstate()
        rows(task)
        assert random.getstate() == before

    def test_another_seed_gives_other_rows(self, task: str) -> None:
        assert [values for _, values in rows(task)] != [values for _, values in rows(task, seed=1)]

    def test_rows_of_a_smaller_count_come_first(self, task: str) -> None:
        assert rows(task, 50) == rows(task, 200)[:50]

    def test_questions_occur_once_and_never_in_both_splits(self, task: str) -> None:
        train = [values["prompt"] for seed in (0, 1) for _, values in rows(task, 400, seed)]
        held_out = {values["prompt"] for seed in (0, 1) for _, values in rows(task, 150, seed, "eval")}
        assert len({values["prompt"] for _, values in rows(task, 400)}) == 400
        assert not held_out & set(train)

    def test_ids_name_task_split_and_index(self, task: str) -> None:
        assert [row_id for row_id, _ in rows(task, 18)][-1] == f"tasks:{task}:train:17"
        assert rows(task, 1, split="eval")[0][0] == f"tasks:{task}:eval:0"

    def test_rows_hold_a_prompt_and_a_completion(self, task: str) -> None:
        for _, values in rows(task, 20):
            assert set(values) == {"prompt", "completion"}
            assert values["prompt"].strip() == values["prompt"] != ""
            assert values["completion"].strip() == values["completion"] != ""


def test_a_count_the_task_cannot_give_is_an_error_that_says_how_many_there_are() -> None:
    source = TasksSource(TasksOptions(task="weekdays", count=5000))
    with pytest.raises(DataError) as raised:
        list(source.rows())
    stated = re.search(r"tasks:weekdays:train: the task has ([\d,]+) different questions", str(raised.value))
    assert stated is not None
    possible = int(stated[1].replace(",", ""))
    held_out = TasksSource(TasksOptions(task="weekdays", count=5000, split="eval"))
    assert (
        possible + len(list(islice(held_out.rows(), 1400 - possible))) == 1400
    )  # 7 days x 100 distances x 2 directions
    assert len(rows("weekdays", possible)) == possible
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    "options", [{}, {"task": "algebra"}, {"task": "family", "count": 0}, {"task": "family", "split": "test"}]
)
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TasksOptions.model_validate(options)


def test_arithmetic_answers_are_the_sums() -> None:
    for _, values in rows("arithmetic", 300):
        found = re.fullmatch(r"What is ([\d +-]+)\? Answer with a number\.", values["prompt"])
        assert found is not None
        terms = re.findall(r"([+-]?) ?(\d+)", found[1])
        assert sum(-int(number) if sign == "-" else int(number) for sign, number in terms) == int(values["completion"])
        assert 2 <= len(terms) <= 4


def test_sorting_answers_are_in_order_and_hold_the_same_words() -> None:
    for _, values in rows("sorting", 300):
        asked = values["prompt"].removeprefix("Sort these words alphabetically: ").removesuffix(".").split(", ")
        answer = values["completion"].split(", ")
        assert all(first < second for first, second in pairwise(answer))
        assert set(asked) == set(answer) and len(asked) == len(answer) >= 4


def test_weekday_answers_agree_with_the_calendar() -> None:
    monday = date(2024, 1, 1)
    names = [(monday + timedelta(days=i)).strftime("%A") for i in range(7)]
    for _, values in rows("weekdays", 300):
        found = re.fullmatch(r"Today is (\w+)\. What day .*?(\d+) days?( ago)?\?", values["prompt"])
        assert found is not None
        today = monday + timedelta(days=names.index(found[1]))
        then = today + timedelta(days=int(found[2]) * (-1 if found[3] else 1))
        assert values["completion"] == names[then.weekday()]
